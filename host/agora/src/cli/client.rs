//! The verbs that a running host answers, over its operator's socket.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use agora_capnp::operator_capnp::{decided, feed, operator, record};
use agora_realm::{Act, HostId, MessageId, Terms};
use anyhow::Context;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use super::args::{
    GrantArgs, KillArgs, PruneArgs, PsArgs, RevokeArgs, RotateArgs, SayArgs, StartArgs, WatchArgs,
};
use super::show;
use crate::boot::manifest::display_bytes;
use crate::delivery::feed::{Told, ToldMessage};
use crate::door::operator::{short_path, socket_path};

/// Runs a verb against the host of a data folder.
pub(super) fn with_host<T, F, Fut>(data: &Path, verb: F) -> anyhow::Result<T>
where
    F: FnOnce(operator::Client) -> Fut,
    Fut: Future<Output = anyhow::Result<T>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let path = socket_path(data);
        let no_host = || {
            format!(
                "no host answers at {} (start one with `agora run IMAGE`, or name its data folder with --data DIR)",
                path.display()
            )
        };
        let (short, _folder) = short_path(&path).with_context(no_host)?;
        let stream = tokio::net::UnixStream::connect(short)
            .await
            .with_context(no_host)?;
        let (reader, writer) = stream.into_split();
        let network = capnp_rpc::twoparty::VatNetwork::new(
            futures::io::BufReader::new(reader.compat()),
            futures::io::BufWriter::new(writer.compat_write()),
            capnp_rpc::rpc_twoparty_capnp::Side::Client,
            capnp::message::ReaderOptions::new(),
        );
        let mut system = capnp_rpc::RpcSystem::new(Box::new(network), None);
        let client = system.bootstrap(capnp_rpc::rpc_twoparty_capnp::Side::Server);
        let running = tokio::task::spawn_local(system);
        let result = verb(client).await;
        running.abort();
        result
    })
}

/// What a host said went wrong, without the wire's prefixes.
pub(super) fn said(error: capnp::Error) -> anyhow::Error {
    anyhow::Error::msg(agora_membrane::error::reason(&error).to_owned())
}

/// Prints what became of a stop or a change. Exit 1 when it is not in the log, or void there.
fn report(decided: decided::Reader<'_>, done: &str) -> anyhow::Result<ExitCode> {
    let note = decided.get_note()?.to_str()?;
    let void = decided.get_void()?.to_str()?;
    let (text, code) = if !decided.get_durable() {
        let pending = show::escape(decided.get_pending()?.to_str()?);
        (
            format!("{done}; in effect here, and waits for the log: {pending}"),
            ExitCode::FAILURE,
        )
    } else if !void.is_empty() {
        (
            format!(
                "{done}; in effect here, and void in the log: {}",
                show::escape(void)
            ),
            ExitCode::FAILURE,
        )
    } else if !note.is_empty() {
        return Ok({
            show::print(&format!("{}\n", show::escape(note)));
            ExitCode::SUCCESS
        });
    } else {
        (done.to_owned(), ExitCode::SUCCESS)
    };
    show::print(&format!("{text}\n"));
    if !note.is_empty() {
        show::print(&format!("{}\n", show::escape(note)));
    }
    Ok(code)
}

pub(super) fn say(args: &SayArgs) -> anyhow::Result<ExitCode> {
    with_host(&args.data.data(), async |host| {
        let mut request = host.say_request();
        let mut params = request.get();
        params.set_channel(args.channel.as_str());
        params.set_act(args.act.into());
        params.set_text(args.text.as_str());
        if let Some(parent) = &args.parent {
            params.set_parent(parent);
        }
        params.set_owner(args.owner.as_deref().unwrap_or_default());
        params.set_deadline_ms(i64::try_from(args.deadline.unwrap_or(0)).unwrap_or(i64::MAX));
        let response = request.send().promise.await.map_err(said)?;
        let outcome = response.get()?.get_outcome()?;
        use agora_capnp::channel_capnp::outcome::Which;
        match outcome.which()? {
            Which::Receipt(receipt) => {
                let receipt = receipt?;
                show::print(&format!(
                    "{} {} hops {} id {}\n",
                    receipt.get_channel()?.to_str()?,
                    receipt.get_ordinal(),
                    receipt.get_hops(),
                    crate::hex(receipt.get_id()?)
                ));
                Ok(ExitCode::SUCCESS)
            }
            Which::Refused(refused) => {
                anyhow::bail!("refused: {}", refused.get_text()?.to_str()?)
            }
        }
    })
}

pub(super) fn grant(args: &GrantArgs) -> anyhow::Result<ExitCode> {
    let terms = args.terms.terms().map_err(anyhow::Error::msg)?;
    with_host(&args.data.data(), async |host| {
        let mut request = host.grant_request();
        request.get().set_agent(args.agent.as_str());
        let mut what = "the timer".to_owned();
        if let Some(channel) = &args.channel {
            request.get().set_channel(channel.as_str());
            terms.write(request.get().init_terms());
            what = format!("'{channel}'");
        }
        if let Some(service) = &args.service {
            request.get().set_service(service.as_str());
            what = format!("the service of '{service}'");
        }
        if let Some(domain) = &args.signer {
            request.get().set_signer(domain.as_str());
            what = format!("a signer for '{domain}'");
        }
        request.get().set_timer(args.timer);
        let response = request.send().promise.await.map_err(said)?;
        let decided = response.get()?.get_outcome()?;
        let number = decided.get_number();
        report(decided, &format!("g{number}: {} has {what}", args.agent))
    })
}

pub(super) fn revoke(args: &RevokeArgs) -> anyhow::Result<ExitCode> {
    with_host(&args.data.data(), async |host| {
        let mut request = host.revoke_request();
        request.get().set_grant(args.grant.as_str());
        request.get().set_reason(args.reason.as_str());
        let response = request.send().promise.await.map_err(said)?;
        report(
            response.get()?.get_outcome()?,
            &format!("{} is revoked", args.grant),
        )
    })
}

pub(super) fn kill(args: &KillArgs) -> anyhow::Result<ExitCode> {
    with_host(&args.data.data(), async |host| {
        let mut request = host.kill_request();
        request.get().set_agent(args.agent.as_str());
        request.get().set_reason(args.reason.as_str());
        let response = request.send().promise.await.map_err(said)?;
        report(
            response.get()?.get_outcome()?,
            &format!("{} is killed", args.agent),
        )
    })
}

pub(super) fn start(args: &StartArgs) -> anyhow::Result<ExitCode> {
    with_host(&args.data.data(), async |host| {
        let mut request = host.start_request();
        request.get().set_agent(args.agent.as_str());
        let response = request.send().promise.await.map_err(said)?;
        report(
            response.get()?.get_outcome()?,
            &format!("{} is started", args.agent),
        )
    })
}

pub(super) fn prune(args: &PruneArgs) -> anyhow::Result<ExitCode> {
    with_host(&args.data.data(), async |host| {
        let mut request = host.prune_request();
        let mut params = request.get();
        params.set_channel(args.channel.as_str());
        params.set_dry_run(args.dry_run);
        params.set_force_past_cursors(args.force_past_cursors);
        let mut keep = params.init_keep();
        match (args.keep_count, args.older_than, args.keep_bytes) {
            (Some(count), _, _) => keep.set_count(count),
            (_, Some(ms), _) => keep.set_age_ms(ms),
            (_, _, bytes) => keep.set_bytes(bytes.unwrap_or(u64::MAX)),
        }
        let response = request.send().promise.await.map_err(said)?;
        let done = response.get()?.get_outcome()?;
        let channel = show::escape(&args.channel);
        if done.get_messages() == 0 {
            show::print(&format!("'{channel}': nothing to prune\n"));
            return Ok(ExitCode::SUCCESS);
        }
        let what = format!(
            "{} messages ({} of payload), through {}",
            done.get_messages(),
            display_bytes(done.get_bytes()),
            done.get_through()
        );
        let mut passed = Vec::new();
        for persona in done.get_passed()?.iter() {
            passed.push(show::escape(persona?.to_str()?));
        }
        let pending = show::escape(done.get_pending()?.to_str()?);
        let over = match (passed.is_empty(), args.dry_run) {
            (true, _) => String::new(),
            (false, true) => format!("; it would pass the cursors of {}", passed.join(", ")),
            (false, false) => format!("; it passed the cursors of {}", passed.join(", ")),
        };
        match (args.dry_run, pending.as_str()) {
            (true, _) => show::print(&format!("'{channel}': would prune {what}{over}\n")),
            (false, "") => show::print(&format!(
                "'{channel}': pruned {what}; the log let go of {}{over}\n",
                display_bytes(done.get_freed())
            )),
            (false, pending) => {
                show::print(&format!("'{channel}': pruned {what}{over}\n{pending}\n"));
                return Ok(ExitCode::FAILURE);
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub(super) fn epoch_show(data: &Path) -> anyhow::Result<ExitCode> {
    with_host(data, async |host| {
        let response = host.status_request().send().promise.await.map_err(said)?;
        let status = response.get()?.get_status()?;
        show::print(&format!(
            "{}{}{}\n",
            status.get_epoch(),
            if status.get_held() { " (held)" } else { "" },
            match status.get_pending_stops() {
                0 => String::new(),
                n => format!(" ({n} stops wait for the log)"),
            }
        ));
        Ok(ExitCode::SUCCESS)
    })
}

pub(super) fn rotate(args: &RotateArgs) -> anyhow::Result<ExitCode> {
    with_host(&args.data.data(), async |host| {
        let mut request = host.rotate_request();
        request
            .get()
            .set_agent(args.agent.as_deref().unwrap_or_default());
        request.get().set_host(args.host);
        let response = request.send().promise.await.map_err(said)?;
        report(response.get()?.get_outcome()?, "the key is changed")
    })
}

pub(super) fn epoch_bump(
    data: &Path,
    hold: bool,
    reason: &str,
    wait: bool,
) -> anyhow::Result<ExitCode> {
    with_host(data, async |host| {
        let mut request = host.bump_request();
        request.get().set_hold(hold);
        request.get().set_reason(reason);
        request.get().set_wait(wait);
        let response = request.send().promise.await.map_err(said)?;
        let results = response.get()?;
        let decided = results.get_outcome()?;
        let done = match decided.get_durable() {
            true => format!("epoch {}", results.get_epoch()),
            false => "revoked here, fence pending".to_owned(),
        };
        let code = report(decided, &done)?;
        show::print(&confirmations(decided)?);
        Ok(code)
    })
}

/// Which other hosts have said that the epoch has begun for them, too; nothing where there are none.
fn confirmations(decided: decided::Reader<'_>) -> anyhow::Result<String> {
    let named = |list: capnp::data_list::Reader<'_>| -> capnp::Result<Vec<String>> {
        let mut names = Vec::new();
        for id in list.iter() {
            names.push(HostId::try_from(id?).map_or_else(|_| "?".into(), |id| id.short()));
        }
        Ok(names)
    };
    let confirmed = named(decided.get_confirmed()?)?;
    let missing = named(decided.get_unconfirmed()?)?;
    let mut text = String::new();
    if !confirmed.is_empty() {
        text.push_str(&format!("confirmed by host {}\n", confirmed.join(", ")));
    }
    if !missing.is_empty() {
        let then = match decided.get_outlasted() {
            true => "its lease has run out since: it admits nothing, or has heard of it by now",
            false => "it is cut within its lease (--wait waits for that)",
        };
        text.push_str(&format!(
            "not confirmed by host {}: {then}\n",
            missing.join(", ")
        ));
    }
    Ok(text)
}

pub(super) fn realm_show(data: &Path) -> anyhow::Result<ExitCode> {
    with_host(data, async |host| {
        let response = host.status_request().send().promise.await.map_err(said)?;
        let status = response.get()?.get_status()?;
        let own = status.get_host()?;
        show::print(&format!(
            "realm {}\nlog   {}\n",
            crate::hex(status.get_realm()?),
            show::escape(status.get_log()?.to_str()?)
        ));
        let mut rows = vec![row(["host", "personas", ""])];
        for host in status.get_hosts()?.iter() {
            let id = host.get_id()?;
            let said = match (id == own, host.get_revoked()) {
                (true, _) => "this one",
                (false, true) => "revoked",
                (false, false) => "",
            };
            rows.push(vec![
                crate::hex(id),
                host.get_personas().to_string(),
                said.to_owned(),
            ]);
        }
        show::print(&show::table(&rows));
        Ok(ExitCode::SUCCESS)
    })
}

pub(super) fn realm_invite(data: &Path, key: &str) -> anyhow::Result<ExitCode> {
    with_host(data, async |host| {
        let mut request = host.invite_request();
        request.get().set_key(key);
        let response = request.send().promise.await.map_err(said)?;
        let decided = response.get()?.get_outcome()?;
        report(decided, "the host is in the realm; run it on the same log")
    })
}

pub(super) fn realm_revoke(data: &Path, id: &str, reason: &str) -> anyhow::Result<ExitCode> {
    with_host(data, async |host| {
        let mut request = host.revoke_host_request();
        request.get().set_host(id);
        request.get().set_reason(reason);
        let response = request.send().promise.await.map_err(said)?;
        let decided = response.get()?.get_outcome()?;
        report(decided, &format!("host {id} is revoked"))
    })
}

pub(super) fn ps(args: &PsArgs) -> anyhow::Result<ExitCode> {
    with_host(&args.data.data(), async |host| {
        let response = host.status_request().send().promise.await.map_err(said)?;
        let status = response.get()?.get_status()?;
        let tally = status.get_tally()?;
        let void = match (tally.get_void(), tally.get_junk()) {
            (0, _) => String::new(),
            (void, 0) => format!(", {void} void"),
            (void, junk) => format!(", {void} void, {junk} of them junk"),
        };
        show::print(&format!(
            "realm {}  host {}  epoch {}{}  log {} ({} entries{void}){}\n",
            &crate::hex(status.get_realm()?)[..8],
            &crate::hex(status.get_host()?)[..8],
            status.get_epoch(),
            if status.get_held() { " (held)" } else { "" },
            show::escape(status.get_log()?.to_str()?),
            status.get_log_end(),
            match status.get_pending_stops() {
                0 => String::new(),
                n => format!(", {n} stops wait for it"),
            }
        ));
        let mut rows = vec![row(["agent", "state", "memory", "restarts", "grants", ""])];
        let mut grants = vec![row(["grant", "agent", "object", "read", "used", "terms"])];
        let foreign = status.get_foreign()?;
        for agent in status.get_agents()?.iter().chain(foreign.iter()) {
            let name = agent.get_name()?.to_str()?;
            // A peer or a guest lives elsewhere.
            let is_own = !name.contains([':', '/']);
            let mut held = Vec::new();
            for grant in agent.get_grants()?.iter() {
                let object = grant.get_object()?.to_str()?;
                held.push(object.to_owned());
                let terms = show::terms(&Terms::read(grant.get_terms()?)?);
                let lent = match grant.get_lent()?.to_str()? {
                    "" => String::new(),
                    lender => format!(", lent by {}", show::escape(lender)),
                };
                let lasting = if grant.get_lasting() { ", lasting" } else { "" };
                let suspended = match grant.get_suspended() {
                    true => ", suspended: a lender is killed",
                    false => "",
                };
                let under = match grant.get_parent() {
                    0 => String::new(),
                    parent => format!(" (under g{parent}{lent}{lasting}{suspended})"),
                };
                let place = match grant.get_latest() {
                    0 => String::new(),
                    latest => format!("{}/{latest}", grant.get_cursor()),
                };
                grants.push(vec![
                    format!("g{}", grant.get_number()),
                    name.to_owned(),
                    object.to_owned(),
                    place,
                    grant.get_used().to_string(),
                    format!("{terms}{under}"),
                ]);
            }
            held.dedup();
            rows.push(vec![
                name.to_owned(),
                agent.get_state()?.to_str()?.to_owned(),
                if is_own {
                    display_bytes(agent.get_memory())
                } else {
                    String::new()
                },
                if is_own {
                    agent.get_restarts().to_string()
                } else {
                    String::new()
                },
                held.join(" "),
                show::escape(agent.get_detail()?.to_str()?),
            ]);
        }
        show::print(&show::table(&rows));
        if args.grants {
            show::print("\n");
            show::print(&show::table(&grants));
        }
        let mut rows = vec![row(["channel", "messages", "hops", "readers", "writers"])];
        for channel in status.get_channels()?.iter() {
            rows.push(vec![
                channel.get_name()?.to_str()?.to_owned(),
                channel.get_latest().to_string(),
                channel.get_hops().to_string(),
                channel.get_readers().to_string(),
                channel.get_writers().to_string(),
            ]);
        }
        show::print("\n");
        show::print(&show::table(&rows));
        Ok(ExitCode::SUCCESS)
    })
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.into_iter().map(str::to_owned).collect()
}

pub(super) fn watch(args: &WatchArgs) -> anyhow::Result<ExitCode> {
    with_host(&args.data.data(), async |host| {
        let (ended, over) = tokio::sync::oneshot::channel();
        let eye = Eye {
            json: args.json,
            colour: show::is_terminal(&std::io::stdout()),
            ended: std::cell::RefCell::new(Some(ended)),
        };
        let mut request = host.watch_request();
        request.get().set_feed(capnp_rpc::new_client(eye));
        request
            .get()
            .set_channel(args.channel.as_deref().unwrap_or_default());
        request.get().set_from(args.from);
        let response = request.send().promise.await.map_err(said)?;
        let _watching = response.get()?.get_watching()?;
        tokio::select! {
            _ = over => anyhow::bail!("the host ended"),
            _ = tokio::signal::ctrl_c() => Ok(ExitCode::SUCCESS),
        }
    })
}

struct Eye {
    json: bool,
    colour: bool,
    ended: std::cell::RefCell<Option<tokio::sync::oneshot::Sender<()>>>,
}

impl Drop for Eye {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            let _ = ended.send(());
        }
    }
}

impl feed::Server for Eye {
    async fn records(self: Rc<Self>, params: feed::RecordsParams) -> Result<(), capnp::Error> {
        for record in params.get()?.get_records()?.iter() {
            let told = read_told(record)?;
            match self.json {
                true => show::print(&format!("{}\n", told.json())),
                false => show::print(&format!("{}\n", show::record(&told, self.colour, false))),
            }
        }
        Ok(())
    }

    async fn caught_up(
        self: Rc<Self>,
        _params: feed::CaughtUpParams,
        _results: feed::CaughtUpResults,
    ) -> Result<(), capnp::Error> {
        Ok(())
    }
}

const KINDS: [&str; 13] = [
    "message", "genesis", "key", "channel", "grant", "revoke", "kill", "fence", "lapse",
    "incident", "prune", "gap", "entry",
];

fn read_told(record: record::Reader<'_>) -> Result<Told, capnp::Error> {
    let kind = record.get_kind()?.to_str()?;
    let channel = record.get_channel()?.to_str()?;
    let id = |data: &[u8]| MessageId::try_from(data).ok();
    let message = match kind == "message" {
        false => None,
        true => {
            let from = record.get_message()?;
            let owner = from.get_owner()?.to_str()?;
            Some(ToldMessage {
                owner: owner.to_owned(),
                id: id(from.get_id()?).unwrap_or(MessageId([0; 32])),
                ordinal: agora_realm::Ordinal(from.get_ordinal()),
                thread: id(from.get_thread()?).unwrap_or(MessageId([0; 32])),
                message: agora_realm::Message {
                    act: from.get_act().map_or(Act::Inform, Into::into),
                    parent: id(from.get_parent()?),
                    hops: from.get_hops(),
                    key: 0,
                    content_type: from.get_content_type()?.to_string()?,
                    payload: from.get_payload()?.to_vec().into(),
                    time_ms: from.get_time_ms(),
                    owner: None,
                    deadline_ms: from.get_deadline_ms(),
                },
            })
        }
    };
    Ok(Told {
        kind: KINDS
            .into_iter()
            .find(|known| *known == kind)
            .unwrap_or("entry"),
        seq: record.get_seq(),
        epoch: agora_realm::Epoch(record.get_epoch()),
        time_ms: record.get_time_ms(),
        author: record.get_author()?.to_string()?,
        host: HostId::try_from(record.get_host()?).unwrap_or(HostId([0; 32])),
        channel: agora_realm::ChannelName::new(channel).ok(),
        body: record.get_body()?.to_string()?,
        message,
    })
}

/// Whether a host answers at a data folder.
pub(super) fn answers(data: &Path) -> bool {
    let path: PathBuf = socket_path(data);
    short_path(&path)
        .is_ok_and(|(short, _folder)| std::os::unix::net::UnixStream::connect(short).is_ok())
}
