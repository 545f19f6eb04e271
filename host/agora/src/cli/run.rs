//! `agora run`: the main job.
//!
//! Shows what counts as it comes, takes typed messages on a terminal, and ends on Ctrl-C: the first drains and flushes, the second
//! ends at once.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use agora_realm::{Act, Change, MessageVerdict, Object, PersonaId, Rights};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::broadcast::error::RecvError;

use super::args::RunArgs;
use super::diary::Diary;
use super::show;
use crate::boot::build;
use crate::boot::host::{Host, Setup, open};
use crate::boot::image::Image;
use crate::boot::quiet::until_quiet;
use crate::channel::speak::Outcome;
use crate::delivery::feed::{Told, asides, tell};
use crate::delivery::record::Settled;
use crate::door::control::{Control, Said};

pub(super) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let mut image = Image::read(&args.image)?;
    let manifest = image.folder.join("agora.toml");
    args.peering
        .add_to(&mut image.manifest.peering, &manifest)?;
    let mut progress = show::Progress::new();
    if !args.no_build {
        let built = build::build(&image, args.trust_source, &mut |text| progress.show(text));
        progress.done();
        built?;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let setup = Setup {
        data: args.data.clone().unwrap_or_else(|| image.data_folder()),
        identity: args.identity.identity(),
        workers: args
            .workers
            .map_or_else(|| cores.saturating_sub(1).clamp(1, 16), usize::from),
        image,
        log: args.log.choice(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(2, 8))
        .thread_name("agora")
        .enable_all()
        .build()?;
    let code = runtime.block_on(serve(args, setup, progress))?;
    // A second Ctrl-C, or a log that never answered, may have left something behind; it must not hold us up.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    Ok(code)
}

async fn serve(
    args: RunArgs,
    setup: Setup,
    mut progress: show::Progress,
) -> anyhow::Result<ExitCode> {
    // From here on: one that comes while the host is starting must not be lost.
    let mut signals = Signals::new()?;
    let data = setup.data.clone();
    let mut tell = |text: &str| progress.show(text);
    let opened = tokio::select! {
        opened = open(setup, &mut tell) => opened?,
        () = signals.next() => anyhow::bail!("interrupted before anything was started"),
    };
    let control = opened.control().clone();
    for (channel, _) in &args.say {
        if let Err(error) = control.channel_named(channel) {
            opened.close().await;
            anyhow::bail!("--say: {error}");
        }
    }
    let screen = Screen::new(control.clone(), args.json);
    let news = control.record().news();
    let showing = tokio::spawn(screen.clone().show(news));
    let host = opened.start().await?;
    progress.done();
    for notice in &host.notices {
        Diary::line(&format!("note: {}", show::escape(notice)));
    }
    let uid = rustix::process::getuid().as_raw();
    if !args.json {
        let channels: Vec<_> = {
            let state = control.record().state();
            state.channels().map(|(name, _)| name.to_string()).collect()
        };
        eprintln!(
            "epoch {} of realm {}; data in {}; {} agents; type `CHANNEL: TEXT` to speak ({}); Ctrl-C ends",
            control.gate().shown().epoch,
            control
                .record()
                .state()
                .realm()
                .map_or(String::new(), |realm| realm.short()),
            data.display(),
            control.agents().len(),
            channels.join(", "),
        );
    }
    screen.listening();
    let ended = live(&args, &control, uid, &screen, &mut signals).await;
    finish(host, ended, args.json, screen, showing, signals).await
}

/// The signals that ask a host to end.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// The next one, also when it came before this was called.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// How a run ended.
enum Ended {
    Quiet,
    Asked,
    Failed(anyhow::Error),
}

async fn live(
    args: &RunArgs,
    control: &Arc<Control>,
    uid: u32,
    screen: &Arc<Screen>,
    signals: &mut Signals,
) -> Ended {
    let mut ending = control.ending();
    let mut failure = control.record().failure();
    let work = async {
        for (channel, text) in &args.say {
            if let Err(error) = say(control, uid, channel, text).await {
                return Ended::Failed(anyhow::Error::msg(format!("--say {channel}: {error}")));
            }
        }
        if args.until_quiet {
            until_quiet(control.clone(), Diary::line).await;
            return Ended::Quiet;
        }
        std::future::pending().await
    };
    let typed = type_messages(control, uid, screen);
    tokio::select! {
        ended = work => ended,
        () = typed => Ended::Asked,
        () = signals.next() => Ended::Asked,
        _ = ending.wait_for(|ending| *ending) => Ended::Asked,
        failed = failure.wait_for(Option::is_some) => match failed {
            Ok(reason) => Ended::Failed(anyhow::Error::msg(reason.clone().unwrap_or_default())),
            Err(_) => Ended::Asked,
        },
    }
}

async fn say(control: &Arc<Control>, uid: u32, channel: &str, text: &str) -> Result<(), String> {
    let said = Said {
        channel: channel.to_owned(),
        act: Act::Request,
        text: text.to_owned(),
        parent: None,
        owner: String::new(),
        deadline_ms: 0,
    };
    match control.say(uid, said).await? {
        Outcome::Receipt { .. } => Ok(()),
        Outcome::Refused(_, text) => Err(text),
    }
}

/// Takes `CHANNEL: TEXT` from a terminal, for as long as there is one.
async fn type_messages(control: &Arc<Control>, uid: u32, screen: &Arc<Screen>) {
    if screen.json || !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        return std::future::pending().await;
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let result = match line.split_once(':') {
            Some((channel, text)) => say(control, uid, channel.trim(), text.trim()).await,
            None => Err("type `CHANNEL: TEXT`".into()),
        };
        if let Err(error) = result {
            eprintln!("{}", show::escape(&error));
        }
    }
    std::future::pending().await
}

async fn finish(
    host: Host,
    ended: Ended,
    json: bool,
    screen: Arc<Screen>,
    showing: tokio::task::JoinHandle<()>,
    mut signals: Signals,
) -> anyhow::Result<ExitCode> {
    if !json && matches!(ended, Ended::Asked) {
        Diary::line("ending: what was spoken goes to the log first (Ctrl-C again ends at once)");
    }
    // On a thread of its own, so that whatever stands still here, a reader of our output among it, the second one ends us.
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new()
        .name("agora-signals".into())
        .spawn(move || {
            runtime.block_on(signals.next());
            std::process::exit(1);
        })?;
    host.close().await;
    // The record is closed, so what it told is all there is to show.
    screen.caught_up().await;
    showing.abort();
    screen.summary();
    match ended {
        Ended::Quiet | Ended::Asked => Ok(ExitCode::SUCCESS),
        Ended::Failed(error) => Err(error),
    }
}

/// Shows the feed and counts for the summary.
struct Screen {
    control: Arc<Control>,
    json: bool,
    colour: bool,
    tally: std::sync::Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    seq: u64,
    messages: u64,
    withheld: u64,
    breaker_opened: u64,
    decisions: u64,
    missed: u64,
}

impl Screen {
    fn new(control: Arc<Control>, json: bool) -> Arc<Self> {
        let seq = control.record().state().last_seq().unwrap_or(0);
        Arc::new(Self {
            colour: !json && show::is_terminal(&std::io::stdout()),
            control,
            json,
            tally: std::sync::Mutex::new(Tally {
                seq,
                ..Tally::default()
            }),
        })
    }

    /// Says where peers reach this host, as they are to write it.
    fn listening(&self) {
        let Some(dialer) = self.control.peers().dialer() else {
            return;
        };
        let id = dialer.peer_id();
        for address in dialer.listening() {
            let address = format!("{address}/p2p/{id}");
            match self.json {
                true => println!(
                    "{}",
                    serde_json::json!({"event": "listening", "address": address})
                ),
                false => eprintln!("listening for peers at {address}"),
            }
        }
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn show(self: Arc<Self>, mut news: tokio::sync::broadcast::Receiver<Arc<Settled>>) {
        loop {
            match news.recv().await {
                Ok(settled) => self.show_one(&settled),
                Err(RecvError::Lagged(_)) => {
                    let next = self.tally().seq + 1;
                    let missed = self.control.record().recent(next, usize::MAX);
                    match missed {
                        Some(missed) => missed.iter().for_each(|settled| self.show_one(settled)),
                        None => {
                            let now = self.control.record().state().last_seq().unwrap_or(0);
                            let mut tally = self.tally();
                            tally.missed += now.saturating_sub(tally.seq);
                            tally.seq = now;
                        }
                    }
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn show_one(&self, settled: &Settled) {
        {
            let mut tally = self.tally();
            if settled.seq <= tally.seq {
                return;
            }
            tally.seq = settled.seq;
            self.count(&mut tally, settled);
        }
        // Told before anything is printed: a reader that stalls must not hold up the judge with it.
        let asides = asides(settled, &self.control.record().state());
        let told = tell(settled);
        // Standard output may be a pipe that nobody reads just now. Then only this waits, and no task of this thread with it.
        tokio::task::block_in_place(|| self.print(settled.seq, &told, &asides));
    }

    fn print(&self, seq: u64, told: &[Told], asides: &[String]) {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        for told in told {
            // Nobody may be reading; the host goes on.
            let _ = match self.json {
                true => writeln!(out, "{}", told.json()),
                false => writeln!(out, "{}", show::record(told, self.colour, false)),
            };
        }
        for aside in asides {
            let _ = match self.json {
                true => writeln!(
                    out,
                    "{}",
                    serde_json::json!({"event": "aside", "seq": seq, "text": aside})
                ),
                false => writeln!(out, "             {}", show::escape(aside)),
            };
        }
    }

    fn count(&self, tally: &mut Tally, settled: &Settled) {
        for verdict in &settled.judged.messages {
            if let MessageVerdict::Counts(placed) = verdict {
                tally.messages += 1;
                tally.withheld += self.not_granted(&placed.channel);
            }
        }
        for change in &settled.judged.changes {
            match change {
                Change::BreakerOpened { .. } => tally.breaker_opened += 1,
                Change::Decided { .. } => tally.decisions += 1,
                _ => {}
            }
        }
    }

    /// How many agents of this host may not read a channel.
    fn not_granted(&self, channel: &agora_realm::ChannelName) -> u64 {
        let state = self.control.record().state();
        let agents = self.control.agents();
        let reads = |agent: &&Arc<crate::persona::agent::Agent>| {
            let persona = PersonaId::new(self.control.host_id(), agent.name.clone());
            state.grants_of(&persona).any(|(_, grant)| {
                matches!(&grant.object, Object::Channel(name) if name == channel)
                    && grant.effective.rights.has(Rights::READ)
            })
        };
        agents.iter().filter(|agent| !reads(agent)).count() as u64
    }

    async fn caught_up(&self) {
        let end = self.control.record().state().last_seq().unwrap_or(0);
        for _ in 0..200 {
            if self.tally().seq >= end {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    fn summary(&self) {
        let agents = self.control.agents();
        let echoes: u64 = agents.iter().map(|agent| agent.shared.echoes()).sum();
        let hops_spent = self.control.counts.hops_spent.load(Ordering::Relaxed);
        let epoch = self.control.record().state().epoch().0;
        let tally = self.tally();
        if self.json {
            println!(
                "{}",
                serde_json::json!({
                    "event": "summary",
                    "messages": tally.messages,
                    "echoes_dropped": echoes,
                    "withheld": tally.withheld,
                    "hops_spent": hops_spent,
                    "breaker_opened": tally.breaker_opened,
                    "decisions": tally.decisions,
                    "epoch": epoch,
                    "records_not_shown": tally.missed,
                })
            );
            return;
        }
        println!(
            "{} messages, {echoes} own echoes dropped, {} withheld from agents without a grant, {hops_spent} answers without hops left, \
             {} breakers opened, {} decisions; epoch {epoch}",
            tally.messages, tally.withheld, tally.breaker_opened, tally.decisions
        );
        if tally.missed > 0 {
            println!(
                "{} entries came faster than they could be shown (agora log shows them)",
                tally.missed
            );
        }
    }
}
