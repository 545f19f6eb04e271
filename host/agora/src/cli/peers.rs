//! `agora peers`, `agora ping` and `agora dial`: how the hosts of other realms are, and where they may be.

use std::process::ExitCode;
use std::time::Duration;

use agora_capnp::operator_capnp::peer_status;
use agora_membrane::error::{Kind, classify, reason};
use agora_realm::Terms;

use super::args::{DialArgs, PeersArgs, PingArgs};
use super::client::{said, with_host};
use super::show;

/// The time between two pings.
const PAUSE: Duration = Duration::from_millis(250);

/// Shows the peers.
pub(super) fn peers(args: &PeersArgs) -> anyhow::Result<ExitCode> {
    with_host(&args.data.data(), async |host| {
        let response = host.peers_request().send().promise.await.map_err(said)?;
        let found = response.get()?;
        let id = found.get_id()?.to_str()?;
        let mut listening = Vec::new();
        for address in found.get_listening()?.iter() {
            listening.push(address?.to_str()?.to_owned());
        }
        let all = found.get_peers()?;
        if args.json {
            let own = serde_json::json!({"event": "host", "id": id, "listening": listening});
            show::print(&format!("{own}\n"));
            for peer in all.iter() {
                show::print(&format!("{}\n", json(peer)?));
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut text = format!("this host is {id}\n");
        match listening.is_empty() {
            true => text.push_str("listens nowhere (agora run --listen ADDRESS)\n"),
            false => listening
                .iter()
                .for_each(|at| text.push_str(&format!("listens at {at}\n"))),
        }
        if all.is_empty() {
            text.push_str(
                "no peers (they are declared under [peers.NAME] in the image's agora.toml)\n",
            );
        }
        for peer in all.iter() {
            text.push_str(&shown(peer)?);
        }
        show::print(&text);
        Ok(ExitCode::SUCCESS)
    })
}

/// What a peer has, or what we have of it: the object, under which terms.
type Granted = Vec<(String, String)>;

fn granted(peer: peer_status::Reader<'_>) -> anyhow::Result<Granted> {
    let mut all = Granted::new();
    for grant in peer.get_granted()?.iter() {
        let terms = show::terms(&Terms::read(grant.get_terms()?)?);
        let used = grant.get_used();
        let object = grant.get_object()?.to_str()?.to_owned();
        all.push((
            object,
            format!("g{}, {terms}, {used} used", grant.get_number()),
        ));
    }
    Ok(all)
}

/// The copy of a channel of a peer's.
struct Copied {
    channel: String,
    span: Option<(u64, u64)>,
}

impl Copied {
    fn text(&self) -> String {
        let channel = show::escape(&self.channel);
        match self.span {
            None => format!("{channel} (nothing yet)"),
            Some((first, last)) => format!("{channel} ({first} to {last})"),
        }
    }

    fn json(&self) -> serde_json::Value {
        let (first, last) = self.span.unzip();
        serde_json::json!({"channel": self.channel, "first": first, "last": last})
    }
}

/// Where a peer may be, each with who says so.
fn addresses(peer: peer_status::Reader<'_>) -> anyhow::Result<Vec<(String, String)>> {
    let all = peer.get_addresses()?.iter();
    all.map(|known| {
        Ok((
            known.get_address()?.to_str()?.to_owned(),
            known.get_from()?.to_str()?.to_owned(),
        ))
    })
    .collect()
}

fn mirrors(peer: peer_status::Reader<'_>) -> anyhow::Result<Vec<Copied>> {
    let copies = peer.get_mirrors()?.iter();
    copies
        .map(|copy| {
            Ok(Copied {
                channel: copy.get_channel()?.to_str()?.to_owned(),
                span: (copy.get_first() > 0).then(|| (copy.get_first(), copy.get_last())),
            })
        })
        .collect()
}

fn lent(peer: peer_status::Reader<'_>) -> anyhow::Result<Granted> {
    let mut all = Granted::new();
    for lent in peer.get_lends()?.iter() {
        let terms = show::terms(&Terms::read(lent.get_terms()?)?);
        all.push((lent.get_channel()?.to_str()?.to_owned(), terms));
    }
    Ok(all)
}

/// As `0.41 ms`.
fn milliseconds(us: u64) -> String {
    format!("{:.2} ms", us as f64 / 1000.0)
}

/// About so many bytes.
fn about(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

fn shown(peer: peer_status::Reader<'_>) -> anyhow::Result<String> {
    let named = |list: Granted| {
        let list: Vec<_> = list
            .into_iter()
            .map(|(object, terms)| format!("{} ({})", show::escape(&object), show::escape(&terms)))
            .collect();
        match list.is_empty() {
            true => "nothing".to_owned(),
            false => list.join("; "),
        }
    };
    let text = |reader: capnp::Result<capnp::text::Reader<'_>>| -> anyhow::Result<String> {
        Ok(show::escape(reader?.to_str()?))
    };
    let (name, state, detail) = (
        text(peer.get_name())?,
        text(peer.get_state())?,
        text(peer.get_detail())?,
    );
    let mut rows = vec![
        ("id", text(peer.get_id())?),
        ("at", text(peer.get_address())?),
    ];
    let known: Vec<_> = addresses(peer)?
        .into_iter()
        .map(|(address, from)| format!("{} ({})", show::escape(&address), show::escape(&from)))
        .collect();
    rows.push(("known at", known.join("; ")));
    if !peer.get_host()?.is_empty() {
        let epoch = match peer.get_epoch() {
            0 => String::new(),
            epoch => format!(", epoch {epoch}"),
        };
        rows.push((
            "is",
            format!(
                "host {} of realm {}{epoch}; calls this one '{}'",
                &crate::hex(peer.get_host()?)[..8],
                &crate::hex(peer.get_realm()?)[..8],
                text(peer.get_calls_us())?
            ),
        ));
    }
    if peer.get_round_trip_us() > 0 {
        rows.push(("round trip", milliseconds(peer.get_round_trip_us())));
    }
    if peer.get_bytes_in() + peer.get_bytes_out() > 0 {
        let (came, went) = (about(peer.get_bytes_in()), about(peer.get_bytes_out()));
        rows.push(("traffic", format!("{came} in, {went} out")));
    }
    if peer.get_held() > 0 {
        let held = peer.get_held();
        rows.push(("held", format!("a checkpoint of {held} entries of its log")));
    }
    let copies: Vec<_> = mirrors(peer)?.iter().map(Copied::text).collect();
    rows.push(("mirrored", copies.join("; ")));
    rows.push(("grants us", named(lent(peer)?)));
    rows.push(("is granted", named(granted(peer)?)));
    let detail = match detail.is_empty() {
        true => detail,
        false => format!(": {detail}"),
    };
    let mut out = format!("\n{name}  {state}{detail}\n");
    let alarm = text(peer.get_alarm())?;
    if !alarm.is_empty() {
        out.push_str(&format!("  ALARM      {alarm}\n"));
    }
    for (what, value) in rows {
        if !value.is_empty() {
            out.push_str(&format!("  {what:<11}{value}\n"));
        }
    }
    Ok(out)
}

fn json(peer: peer_status::Reader<'_>) -> anyhow::Result<serde_json::Value> {
    let hex = |bytes: &[u8]| (!bytes.is_empty()).then(|| crate::hex(bytes));
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let listed = |list: Granted| {
        let list = list.into_iter();
        list.map(|(object, terms)| serde_json::json!({"channel": object, "terms": terms}))
            .collect::<Vec<_>>()
    };
    Ok(serde_json::json!({
        "event": "peer",
        "name": peer.get_name()?.to_str()?,
        "id": some(peer.get_id()?.to_str()?),
        "state": peer.get_state()?.to_str()?,
        "detail": peer.get_detail()?.to_str()?,
        "address": some(peer.get_address()?.to_str()?),
        "addresses": addresses(peer)?
            .into_iter()
            .map(|(address, from)| serde_json::json!({"address": address, "from": from}))
            .collect::<Vec<_>>(),
        "round_trip_us": (peer.get_round_trip_us() > 0).then(|| peer.get_round_trip_us()),
        "bytes_in": peer.get_bytes_in(),
        "bytes_out": peer.get_bytes_out(),
        "realm": hex(peer.get_realm()?),
        "host": hex(peer.get_host()?),
        "key": hex(peer.get_key()?),
        "calls_us": some(peer.get_calls_us()?.to_str()?),
        "epoch": (peer.get_epoch() > 0).then(|| peer.get_epoch()),
        "held": (peer.get_held() > 0).then(|| peer.get_held()),
        "alarm": some(peer.get_alarm()?.to_str()?),
        "mirrors": mirrors(peer)?.iter().map(Copied::json).collect::<Vec<_>>(),
        "lends": listed(lent(peer)?),
        "granted": listed(granted(peer)?),
    }))
}

/// Dials a peer, or takes back where it may be.
pub(super) fn dial(args: &DialArgs) -> anyhow::Result<ExitCode> {
    let name = show::escape(&args.peer);
    if !args.forget.is_empty() {
        return forget(args, &name);
    }
    with_host(&args.data.data(), async |host| {
        let mut request = host.dial_request();
        request.get().set_peer(args.peer.as_str());
        let mut list = request.get().init_addresses(args.addresses.len() as u32);
        for (i, address) in args.addresses.iter().enumerate() {
            list.set(i as u32, address.as_str());
        }
        let response = request.send().promise.await.map_err(said)?;
        let dialed = response.get()?.get_outcome()?;
        let address = dialed.get_address()?.to_str()?;
        let why = dialed.get_why()?.to_str()?;
        let note = dialed.get_note()?.to_str()?;
        let us = dialed.get_round_trip_us();
        if args.json {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let told = serde_json::json!({
                "event": "dial",
                "peer": args.peer,
                "connected": dialed.get_connected(),
                "already": dialed.get_already(),
                "address": some(address),
                "round_trip_us": (us > 0).then_some(us),
                "why": some(why),
                "note": some(note),
            });
            show::print(&format!("{told}\n"));
        } else if dialed.get_connected() {
            let address = show::escape(address);
            let already = match (dialed.get_already(), args.addresses.is_empty()) {
                (false, _) => "",
                (true, true) => "; it was before, too",
                (true, false) => "; it was before, too, so what is given here is for the next dial",
            };
            let round_trip = match us {
                0 => "no ping came back yet".to_owned(),
                us => format!("round trip {}", milliseconds(us)),
            };
            show::print(&format!(
                "{name}: connected at {address}, {round_trip}{already}\n"
            ));
        } else {
            show::print(&format!("{name}: not connected: {}\n", show::escape(why)));
        }
        if !note.is_empty() && !args.json {
            show::print(&format!("{}\n", show::escape(note)));
        }
        Ok(match dialed.get_connected() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    })
}

fn forget(args: &DialArgs, name: &str) -> anyhow::Result<ExitCode> {
    with_host(&args.data.data(), async |host| {
        let mut request = host.forget_addresses_request();
        request.get().set_peer(args.peer.as_str());
        let mut list = request.get().init_addresses(args.forget.len() as u32);
        for (i, address) in args.forget.iter().enumerate() {
            list.set(i as u32, address.as_str());
        }
        let response = request.send().promise.await.map_err(said)?;
        let mut left = Vec::new();
        for address in response.get()?.get_left()?.iter() {
            left.push(address?.to_str()?.to_owned());
        }
        if args.json {
            let told = serde_json::json!({"event": "forgot", "peer": args.peer, "left": left});
            show::print(&format!("{told}\n"));
        } else {
            let left = match left.is_empty() {
                true => "nothing is left of what `agora dial` was given".to_owned(),
                false => format!("left: {}", show::escape(&left.join(", "))),
            };
            show::print(&format!("{name}: not dialed there any more; {left}\n"));
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Measures the round trip to a peer.
pub(super) fn ping(args: &PingArgs) -> anyhow::Result<ExitCode> {
    with_host(&args.data.data(), async |host| {
        let name = show::escape(&args.peer);
        let mut took = Vec::new();
        for at in 0..args.count {
            if at > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let mut request = host.ping_request();
            request.get().set_peer(args.peer.as_str());
            match request.send().promise.await {
                Ok(response) => {
                    let us = response.get()?.get_microseconds();
                    took.push(us);
                    show::print(&format!("{name}: {}\n", milliseconds(us)));
                }
                // There is no such peer, or no host any more.
                Err(error) if !matches!(classify(&error), Kind::Busy) => return Err(said(error)),
                Err(error) => {
                    show::print(&format!(
                        "{name}: no answer: {}\n",
                        show::escape(reason(&error))
                    ));
                }
            }
        }
        took.sort_unstable();
        let summary = match (took.first(), took.last()) {
            (Some(least), Some(most)) => format!(
                ": least {}, median {}, most {}",
                milliseconds(*least),
                milliseconds(took[took.len() / 2]),
                milliseconds(*most)
            ),
            _ => String::new(),
        };
        show::print(&format!(
            "{} of {} answered{summary}\n",
            took.len(),
            args.count
        ));
        Ok(match took.len() == args.count as usize {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    })
}
