//! Who a host is: the public side of its keys, and how one comes to be that joins others.

use std::path::Path;
use std::process::ExitCode;

use agora_log::{Embedded, Seq};
use agora_realm::{RealmId, State, judge};

use super::args::IdArgs;
use super::show;
use crate::boot::data::{DataError, DataFolder, check_format};
use crate::delivery::pruned::{Pruned, open_places};
use crate::delivery::record;
use crate::persona::identity::{Identity, claim, peer_id};

/// Shows the public side of a host's keys.
pub(super) fn id(args: &IdArgs) -> anyhow::Result<ExitCode> {
    let data = args.data.data();
    let identity = args.identity.identity();
    match check_format(&data) {
        Err(DataError::Missing(_)) if args.make => {
            let _folder = DataFolder::open(&data)?;
            let keys = identity.open_or_make(&data)?;
            claim(&data, keys.host_id())?;
        }
        checked => checked?,
    }
    let keys = identity.open(&data)?;
    let peer = peer_id(keys.secret());
    if args.peer {
        show::print(&format!("{peer}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let secret = identity.path(&data);
    let realm = std::fs::read_to_string(data.join("realm")).unwrap_or_default();
    let realm = realm.trim();
    let state = state_of(&data);
    let host = keys.host_id();
    let known = state.as_ref().and_then(|state| state.host(&host));
    let (key, generation) =
        known.map_or((keys.host().public(), 1), |known| (known.key, known.keys));
    let personas: Vec<_> = state
        .iter()
        .flat_map(State::personas)
        .filter(|(id, _)| id.host == host)
        .collect();
    if args.json {
        let personas = personas.iter().map(|(id, persona)| {
            serde_json::json!({
                "name": id.name.as_str(),
                "persona": id.to_string(),
                "key": persona.key.to_string(),
                "generation": persona.keys,
                "component": persona.component.map(|component| component.to_string()),
                "killed": persona.killed,
            })
        });
        let shown = serde_json::json!({
            "host": host.to_string(),
            "key": key.to_string(),
            "generation": generation,
            "peer": peer.to_string(),
            "realm": (!realm.is_empty()).then_some(realm),
            "secret": secret.display().to_string(),
            "through": state.as_ref().and_then(State::last_seq),
            "personas": personas.collect::<Vec<_>>(),
        });
        show::print(&format!("{shown}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let its = |generation: u64| match generation {
        1 => String::new(),
        later => format!("  number {later}"),
    };
    show::print(&format!(
        "host    {host}\nkey     {key}{}\npeer    {peer}\nrealm   {}\nsecret  {}\n",
        its(generation),
        match realm {
            "" => "none yet",
            realm => realm,
        },
        show::escape(&secret.display().to_string())
    ));
    if !personas.is_empty() {
        let rows = personas.iter().map(|(id, persona)| {
            let killed = if persona.killed { "  killed" } else { "" };
            vec![
                id.to_string(),
                format!("{}{}{killed}", persona.key, its(persona.keys)),
            ]
        });
        let rows: Vec<_> = rows.collect();
        show::print(&format!("\n{}", show::table(&rows)));
    }
    Ok(ExitCode::SUCCESS)
}

/// What can be known of the realm without its host: from the snapshot, and the log where that is in the data folder.
fn state_of(data: &Path) -> Option<State> {
    let snapshot = record::last_snapshot(&data.join("state"));
    let Ok((log, _)) = Embedded::open_read_only(&data.join("log")) else {
        return snapshot.map(|snapshot| snapshot.state);
    };
    let pruned = Pruned::open(data.join("pruned")).ok()?;
    let place = |seq: Seq, stored| {
        let place = pruned.place(seq.0, stored, || log.is_purged(seq)).ok()?;
        Some((seq.0, place))
    };
    let fits = |snapshot: &record::Snapshot| {
        let stored = log.read(Seq(snapshot.seq), 1, usize::MAX).ok();
        let first = stored.and_then(|stored| stored.into_iter().next());
        let found = first.and_then(|(seq, stored)| place(seq, stored));
        found.is_some_and(|(seq, place)| seq == snapshot.seq && snapshot.stops_at(&place.leaf()))
    };
    let mut state = match snapshot.filter(fits) {
        Some(snapshot) => snapshot.state,
        None => State::new(),
    };
    loop {
        let next = state.last_seq().unwrap_or(0) + 1;
        let batch = log.read(Seq(next), 1024, 8 << 20).ok()?;
        if batch.is_empty() {
            return state.realm().is_some().then_some(state);
        }
        let places = batch
            .into_iter()
            .map(|(seq, stored)| place(seq, stored))
            .collect::<Option<Vec<_>>>()?;
        for (seq, sealed) in open_places(places) {
            judge(&mut state, seq, sealed.as_ref());
        }
    }
}

/// Makes a data folder for a host that is to join a realm, and says what its key is.
pub(super) fn realm_join(
    data: &Path,
    identity: &Identity,
    realm: &str,
) -> anyhow::Result<ExitCode> {
    let realm: RealmId = realm.parse().map_err(|_| {
        anyhow::anyhow!(
            "'{realm}' is no realm: it takes the 64 hexadecimal digits of `agora realm show`"
        )
    })?;
    let folder = DataFolder::open(data)?;
    let pinned = folder.realm()?;
    match pinned {
        Some(pinned) if pinned != realm => anyhow::bail!(
            "{}: this data folder belongs to realm {} (name another with --data DIR)",
            data.display(),
            pinned.short()
        ),
        _ => {}
    }
    let keys = identity.open_or_make(data)?;
    if pinned.is_none() {
        claim(data, keys.host_id())?;
    }
    folder.pin_realm(realm)?;
    // A realm knows a host by the first key it had.
    let key = keys.host_id();
    show::print(&format!(
        "key {key}\nAt a host of the realm: agora realm invite {key}\nThen run this one on the realm's log.\n"
    ));
    Ok(ExitCode::SUCCESS)
}
