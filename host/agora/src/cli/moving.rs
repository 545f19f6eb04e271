//! A log into a file, and from a file into another log.
//!
//! In: a log, embedded or on servers; a file of `agora_log::export`. Out: the other of the two.
//! Promise: every place stays what it was, to the byte and where it was. A file is read and audited whole before anything of it is
//! written, is refused where it isn't what correct hosts wrote, and goes into an empty log only; an import that was interrupted goes on
//! where it stopped, once what is there was compared.
//! Failure: says what, and which place. Until an import is done no host runs on its data folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use agora_log::export::{Header, Place, Reader, Writer, leaf_hash};
use agora_log::{Class, Embedded, JetStream, Lane, Log, Options, Seq};
use agora_realm::{Audit, Body, NoteBody, RealmId, Sealed};
use anyhow::Context;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use sha2::{Digest, Sha256};

use super::args::{ImportArgs, LogServerArgs};
use super::show;
use super::source::{Pace, Source};
use super::verify::{read_checkpoints, run};
use crate::boot::data::DataFolder;
use crate::boot::host::{LogChoice, stream_of};
use crate::delivery::auditing::{Broken, Exported};
use crate::delivery::gathering::lane_of;
use crate::delivery::pruned::{Pruned, Stub};
use crate::limits;

// -- Out

/// Writes a whole log into a file, or to standard output.
pub(super) fn export(data: &Path, servers: &LogServerArgs, to: &Path) -> anyhow::Result<ExitCode> {
    let mut source = Source::open(data, servers)?;
    let written = match to.as_os_str() == "-" {
        true => write_all(&mut source, std::io::stdout().lock())?.0,
        false => {
            let part = with_ending(to, ".part");
            let written = write_to(&mut source, &part, to);
            if written.is_err() {
                let _ = std::fs::remove_file(&part);
            }
            written?
        }
    };
    // Standard output may be what the log went to.
    eprintln!(
        "{} entries of realm {} are in {}",
        written.count,
        written.realm.short(),
        show::escape(&to.display().to_string())
    );
    Ok(ExitCode::SUCCESS)
}

struct Written {
    realm: RealmId,
    count: u64,
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn write_to(source: &mut Source, part: &Path, to: &Path) -> anyhow::Result<Written> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let at = || show::escape(&part.display().to_string());
    let file = options.open(part).with_context(at)?;
    let (written, file) = write_all(source, file)?;
    file.sync_all().with_context(at)?;
    std::fs::rename(part, to).with_context(at)?;
    Ok(written)
}

fn write_all<W: Write>(source: &mut Source, to: W) -> anyhow::Result<(Written, W)> {
    let mut pace = Pace::new();
    let mut to = Some(BufWriter::with_capacity(1 << 20, to));
    let mut writer: Option<(RealmId, Writer<BufWriter<W>>)> = None;
    let mut at = 0;
    loop {
        pace.at(|| {
            format!(
                "exporting {}: {at} of {} entries",
                source.place,
                source.end()
            )
        });
        let batch = source.next_batch()?;
        let Some((last, _)) = batch.last() else {
            break;
        };
        at = last.0;
        for (_, place) in batch {
            if let Some(to) = to.take() {
                let realm = genesis_of(&place).with_context(|| source.place.clone())?;
                if source.realm.is_some_and(|pinned| pinned != realm) {
                    anyhow::bail!(
                        "{}: it begins realm {}, and the data folder belongs to another",
                        source.place,
                        realm.short()
                    );
                }
                let header = Header {
                    id: realm.0,
                    first: Seq::FIRST,
                };
                writer = Some((realm, Writer::new(to, header)?));
            }
            if let Some((_, writer)) = &mut writer {
                writer.push(&place)?;
            }
        }
    }
    pace.done();
    let Some((realm, writer)) = writer else {
        anyhow::bail!(
            "{}: there is nothing in this log (if the realm's log is on servers, say --log)",
            source.place
        );
    };
    let (to, trailer) = writer.finish()?;
    let to = to
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    let count = trailer.count;
    Ok((Written { realm, count }, to))
}

/// The realm that the first place of a log begins.
fn genesis_of(place: &Place) -> anyhow::Result<RealmId> {
    let Place::Entry(stored) = place else {
        anyhow::bail!("the log's first entry was purged, and it never may be");
    };
    let sealed = Sealed::open(stored.clone()).context("the log's first entry")?;
    match (&sealed.entry().body, sealed.entry().realm) {
        (Body::Key(key), None) if key.genesis.is_some() => Ok(RealmId::from(sealed.id())),
        _ => anyhow::bail!("the log does not begin with the beginning of a realm"),
    }
}

// -- In

/// What is in a file, once it was read whole.
struct Checked {
    realm: RealmId,
    /// What stood at each place.
    places: [u8; 32],
    count: u64,
    void: u64,
    junk: u64,
    pruned: u64,
    /// The first pruned place of which no note in the log itself says what is kept of it.
    unkept: Option<u64>,
}

type Export = Reader<BufReader<File>>;

fn open_file(path: &Path) -> anyhow::Result<Export> {
    let at = || show::escape(&path.display().to_string());
    let file = File::open(path).with_context(at)?;
    Reader::new(BufReader::with_capacity(1 << 20, file)).with_context(at)
}

/// Reads a file whole: its checksums, every signature, what judge says from the genesis on, and whether it is what correct hosts wrote, up
/// to the checkpoints that are held as they signed it.
fn check(args: &ImportArgs) -> anyhow::Result<Checked> {
    let path = &args.file;
    let at = || show::escape(&path.display().to_string());
    let reader = open_file(path)?;
    let header = reader.header();
    let realm = RealmId(header.id);
    if header.first != Seq::FIRST {
        anyhow::bail!(
            "{}: it begins at entry {}, and a log begins at 1 (export the whole log)",
            at(),
            header.first
        );
    }
    let mut audit = Audit::new();
    audit.expect_realm(realm);
    for file in &args.checkpoint {
        for held in read_checkpoints(file)? {
            audit.hold(held);
        }
    }
    let mut unkept = BTreeMap::new();
    let mut places = Places::default();
    let told = run(Exported::new(reader), audit, |stored, judged| {
        let Ok(sealed) = &stored.entry else {
            // What was kept of a pruned place is an entry, or the file is refused.
            return places.push(&stored.leaf, None);
        };
        let stub = stored.is_pruned.then(|| sealed.stored());
        places.push(&stored.leaf, stub.map(|stub| &stub[..]));
        if sealed.is_purged() {
            unkept.insert(stored.seq, kept_hash(&stored.leaf, sealed.stored()));
        }
        if let (Ok(()), Body::Note(NoteBody::Stubs { stubs, .. })) =
            (judged.verdict, &sealed.entry().body)
        {
            for stub in stubs {
                if unkept.get(&stub.seq) == Some(&kept_hash(&stub.leaf, &stub.stub)) {
                    unkept.remove(&stub.seq);
                }
            }
        }
    });
    match told.audited.broken {
        Some(Broken::At { why, .. }) => anyhow::bail!("{}: {why}", at()),
        Some(Broken::Unreadable(error)) => return Err(error.context(at())),
        None => {}
    }
    let report = told.audited.audit.end();
    if report.realm != Some(realm) {
        anyhow::bail!(
            "{}: it doesn't begin with the first entry of the realm that it says it is of",
            at()
        );
    }
    // What hosts meet with in a log, and pass over, may be accepted: entries that are void or none.
    let refused = match args.accept_findings {
        true => report.gravest.as_ref(),
        false => report.findings.first(),
    };
    if let Some(first) = refused {
        let place = match first.since == first.seq {
            true => format!("entry {}", first.seq),
            false => format!("somewhere from entry {} to {}", first.since, first.seq),
        };
        let more = match report.found {
            1 => String::new(),
            n => format!(" (one of {n} findings)"),
        };
        let what_now = match args.accept_findings {
            true => "that is not what hosts pass over, so it is not accepted either",
            false => {
                "agora verify FILE says all; a log in which hosts met with that themselves is imported as it is with --accept-findings"
            }
        };
        anyhow::bail!(
            "{}: not what correct hosts wrote: {place}: {}{more} ({what_now})",
            at(),
            first.wrong
        );
    }
    let tally = report.state.tally();
    Ok(Checked {
        realm,
        places: places.end(),
        count: tally.entries,
        void: tally.void,
        junk: tally.junk,
        pruned: report.totals.pruned,
        unkept: unkept.first_key_value().map(|(seq, _)| *seq),
    })
}

/// A hash over what stands at each place of a file, as it is read: an entry, or what is kept of one.
#[derive(Default)]
struct Places(Sha256);

impl Places {
    fn push(&mut self, leaf: &[u8; 32], stub: Option<&[u8]>) {
        self.0.update([u8::from(stub.is_some())]);
        self.0.update(leaf);
        if let Some(stub) = stub {
            self.0.update((stub.len() as u64).to_le_bytes());
            self.0.update(stub);
        }
    }

    fn end(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

fn kept_hash(leaf: &[u8; 32], stub: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(leaf)
        .chain_update(stub)
        .finalize()
        .into()
}

/// Puts a log from a file into an empty one.
pub(super) fn import(args: &ImportArgs) -> anyhow::Result<ExitCode> {
    let data = args.data.data();
    let found = check(args)?;
    let folder = DataFolder::open(&data)?;
    if let Some(pinned) = folder.realm()?
        && pinned != found.realm
    {
        anyhow::bail!(
            "{}: this data folder belongs to realm {}, and {} is of realm {} (name another with --data DIR)",
            data.display(),
            pinned.short(),
            args.file.display(),
            found.realm.short()
        );
    }
    if let (Some(seq), false) = (found.unkept, args.log.is_empty()) {
        anyhow::bail!(
            "{}: {} of its entries were pruned in a data folder, so that what is kept of them, as of entry {seq}, does not stand in the log \
             itself, and hosts that share a log must each be able to judge all of it (import it into a data folder)",
            args.file.display(),
            found.pruned
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let place = runtime.block_on(fill(&folder, args, &found))?;
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    show::print(&format!(
        "{} entries of realm {} are in {}, {} of them void ({} junk)\n",
        found.count,
        found.realm.short(),
        show::escape(&place),
        found.void,
        found.junk
    ));
    if !folder.join("secret").exists() {
        show::print(&format!(
            "An export holds no secret. To go on as a host of the realm, put that host's at {}.\n",
            folder.join("secret").display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens the log that is meant, and fills it. Answers where that is.
async fn fill(folder: &DataFolder, args: &ImportArgs, found: &Checked) -> anyhow::Result<String> {
    let (log, place): (Arc<dyn Log>, String) = match args.log.choice() {
        LogChoice::JetStream(options) => {
            let mut options = stream_of(*options, found.realm, "import");
            options.create = true;
            let place = options.place();
            (Arc::new(JetStream::open(options).await?), place)
        }
        _ => {
            let path = folder.folder("log")?;
            let log = Embedded::open(&path, Options::default())?.0;
            (Arc::new(log), path.display().to_string())
        }
    };
    let which = format!("{} {place}\n", found.realm);
    let begun = folder.importing()?;
    if let Some(begun) = &begun
        && *begun != which
    {
        anyhow::bail!(
            "{}: another import into this data folder was interrupted ({}; run that one again first)",
            place,
            begun.trim()
        );
    }
    let there = log.end();
    if there > Seq(0) && begun.is_none() {
        anyhow::bail!(
            "{place}: there are {there} entries in this log, and only an empty one is imported into (name another data folder with --data DIR)"
        );
    }
    folder.set_importing(Some(&which))?;
    if found.pruned > 0 && !args.log.is_empty() {
        // Before anything is written: what can't be taken out again must not be put in.
        log.purge_lane(GONE, Seq::FIRST).await?;
    }
    let stubs = Pruned::open(folder.join("pruned"))?;
    let is_shared = !args.log.is_empty();
    let imported = append_all(&*log, is_shared, &stubs, &args.file, found, there, &place).await;
    let closed = log.close().await;
    imported?;
    closed?;
    folder.pin_realm(found.realm)?;
    if !args.log.is_empty() {
        retire_own_log(folder)?;
    }
    folder.set_importing(None)?;
    Ok(place)
}

/// On servers, where an entry of no bytes goes that stands for one that was pruned, until it is taken out.
const GONE: Lane = Lane::Of(*b"gone\0\0\0\0");

/// Compares what is there, and appends the rest.
async fn append_all(
    log: &dyn Log,
    is_shared: bool,
    stubs: &Pruned,
    file: &Path,
    found: &Checked,
    there: Seq,
    place: &str,
) -> anyhow::Result<()> {
    let mut reader = open_file(file)?;
    let mut pace = Pace::new();
    let mut behind = Comparing::default();
    let mut waiting = FuturesOrdered::new();
    let mut bytes_waiting = 0;
    let (mut pruned, mut purged) = (Vec::new(), Vec::new());
    let mut read = Places::default();
    while let Some((seq, content)) = reader.next_place()? {
        match &content {
            Place::Entry(_) => read.push(&content.leaf(), None),
            Place::Purged { leaf, stub } => read.push(leaf, Some(stub)),
        }
        pace.at(|| format!("importing into {place}: {seq} of {} entries", found.count));
        let stored = match content {
            Place::Entry(stored) => stored,
            // Nothing is to stand there. No host runs here before the import is done, so what is kept of it may come later.
            Place::Purged { leaf, stub } => {
                pruned.push(Stub {
                    seq: seq.0,
                    leaf,
                    stub,
                });
                purged.push(seq);
                if pruned.len() >= limits::PRUNE_STUBS_MAX {
                    stubs.add(&std::mem::take(&mut pruned))?;
                }
                bytes::Bytes::new()
            }
        };
        if seq <= there {
            if behind.at(log, seq).await? != stored {
                anyhow::bail!(
                    "{place}: entry {seq} is another one than in the file, so this is not what an import left there (make a new log)"
                );
            }
            continue;
        }
        let len = stored.len();
        // Less than a log's queue takes, so that each entry has its room when it is handed over, and the order stays.
        while waiting.len() >= limits::IMPORT_ENTRIES_WAITING_MAX
            || (bytes_waiting + len > limits::IMPORT_BYTES_WAITING_MAX && !waiting.is_empty())
        {
            bytes_waiting -= settled(waiting.next().await, place)?;
        }
        bytes_waiting += len;
        // An entry may stand in a log twice, so it goes by its place too.
        let id = Sha256::new()
            .chain_update("agora import")
            .chain_update(found.realm.0)
            .chain_update(seq.0.to_le_bytes())
            .chain_update(leaf_hash(&stored));
        let lane = match purged.last() == Some(&seq) {
            true => GONE,
            false => {
                let sealed = Sealed::reread(stored.clone());
                sealed.map_or(Lane::Main, |sealed| lane_of(&sealed.entry().body))
            }
        };
        let appending = log.append_in(lane, id.finalize().into(), stored, Class::Ordinary);
        waiting.push_back(async move { (seq, len, appending.await) });
    }
    while !waiting.is_empty() {
        settled(waiting.next().await, place)?;
    }
    if read.end() != found.places {
        anyhow::bail!(
            "{}: it was changed while it was imported, so what is at {place} now is of no use (make a new log, and import it again)",
            show::escape(&file.display().to_string())
        );
    }
    if !pruned.is_empty() {
        stubs.add(&pruned)?;
    }
    if let Some(last) = purged.last() {
        // So that it is known of each that something is kept in its stead.
        match is_shared {
            true => log.purge_lane(GONE, *last).await?,
            false => drop(log.purge(purged).await?),
        }
    }
    if log.end().0 > found.count {
        anyhow::bail!(
            "{place}: it has {} entries now, and the file has {} (something else appends to it)",
            log.end(),
            found.count
        );
    }
    Ok(())
}

type Appending = (Seq, usize, Result<agora_log::Appended, agora_log::LogError>);

/// How many bytes are durable now, in the place where they belong.
fn settled(next: Option<Appending>, place: &str) -> anyhow::Result<usize> {
    let Some((seq, len, appended)) = next else {
        return Ok(0);
    };
    let appended = appended.with_context(|| format!("entry {seq}"))?;
    if appended.seq != seq {
        anyhow::bail!(
            "{place}: entry {seq} came to stand at {} (something else appends to this log; it is of no use now)",
            appended.seq
        );
    }
    Ok(len)
}

/// Reads a log in order, a part at a time.
#[derive(Default)]
struct Comparing {
    batch: std::collections::VecDeque<(Seq, bytes::Bytes)>,
}

impl Comparing {
    async fn at(&mut self, log: &dyn Log, seq: Seq) -> anyhow::Result<bytes::Bytes> {
        if self.batch.is_empty() {
            self.batch = log.read(seq, 1024, 4 << 20).await?.into();
        }
        match self.batch.pop_front() {
            Some((at, stored)) if at == seq => Ok(stored),
            _ => anyhow::bail!("entry {seq} of the log can't be read"),
        }
    }
}

/// The realm's log is on servers now. The one in the folder must not be gone on with by mistake.
fn retire_own_log(folder: &DataFolder) -> anyhow::Result<()> {
    let own = folder.join("log");
    if !own.exists() {
        return Ok(());
    }
    let retired = (1..)
        .map(|n| folder.join(&format!("log.moved-{n}")))
        .find(|path| !path.exists())
        .expect("a folder has not all names");
    std::fs::rename(&own, &retired)?;
    show::print(&format!(
        "The log that was in the data folder is at {} now; remove it when you need it no more.\n",
        retired.display()
    ));
    Ok(())
}
