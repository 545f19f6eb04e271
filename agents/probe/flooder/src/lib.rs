//! Floods whatever can be flooded.
//!
//! In: a channel with the rights to read, write, initiate (for `calls`) and attenuate (for `facets`). What it hears there
//! names a flood, as a message of one word. On arrival it floods with `calls` at once, unless a message waits for it; when
//! nothing was granted, with `output`.
//! Out: for a flood that it may survive a report, as `flooder: calls ok=2990 refused=0 busy=10 other=0`, in answer. A flood
//! that must end it is passed first, so that it is not told again after its restart.
//!
//! Tries, and what must stop it:
//! - `calls`: 3,000 calls of `speak` in flight. What waits for the log is bounded: what is over it fails as busy;
//! - `questions`: 8,000 calls in flight that nobody answers. Over the bound of a wire: it is ended;
//! - `frames`: a frame of 2 MiB. Over the bound of a frame: it is ended;
//! - `batch`: 2,000 frames in one call. Over the bound of a batch: it is ended;
//! - `facets`: 2,000 facets and 2,000 subscriptions. A graft makes so many facets and no more; a subscription replaces the
//!   one before;
//! - `output`: 100,000 lines and one of 1 MiB. Lines are kept at a rate, and cut; the rest are counted;
//! - `chain`: 1,000 calls, each on the answer of the one before. Over the bound of a chain: it is ended;
//! - `parcels`: 60 MB of calls that are not answered. Over the bound of their bytes: it is ended;
//! - `leak`: grafts whose capabilities are never released. Over the bound of those: it is ended;
//! - `regraft`: as many grafts, released. Nothing stops it; it panics when it is done;
//! - `lines`: 8,000,000 lines of one letter. They are counted;
//! - `write`: 8 MiB of lines in one write. More than was offered: it is ended;
//! - `honest`: no flood: 3,000 subscriptions and 24,000 calls, one after the other, all let go of. Nothing stops it;
//! - `malformed`: frames that are no Cap'n Proto at all, and some that nearly are: it is ended.
//!
//! Nobody else slows down for any of it.

use agora_guest::Kind;
use agora_guest::prelude::*;
use futures::future::join_all;

/// Calls at once that one agent's wire still bears.
const CALLS: usize = 3_000;
/// Calls at once that it does not.
const QUESTIONS: usize = 8_000;
/// Facets asked for, and subscriptions.
const FACETS: usize = 2_000;
/// Bytes of a frame that is too large.
const FRAME_BYTES: usize = 2 << 20;
/// Frames of a batch that is too large.
const BATCH_FRAMES: usize = 2_000;
/// Lines of output.
const LINES: usize = 100_000;
/// Calls in a chain.
const CHAIN: usize = 1_000;
/// Grafts in a row.
const LEAKS: usize = 16_000;
/// Calls of nearly a frame that are never answered.
const PARCELS: usize = 60;
/// Bytes of one.
const PARCEL_BYTES: usize = 1_000_000;
/// Rounds of an honest life.
const ROUNDS: usize = 3_000;
/// Bytes of lines in one write that is too large.
const WRITE_BYTES: usize = 8 << 20;
/// Bytes of one long line.
const LINE_BYTES: usize = 1 << 20;

// Each flood passes the bound that it is to meet, and no other one first.
const _: () = {
    use agora_guest::wire::{BATCH_FRAMES_MAX, FRAME_BYTES_MAX, Limits};
    assert!(FRAME_BYTES > FRAME_BYTES_MAX);
    assert!(BATCH_FRAMES > BATCH_FRAMES_MAX);
    assert!(QUESTIONS > Limits::HOST.questions_max);
    assert!(CALLS < Limits::HOST.questions_max && FACETS < Limits::HOST.questions_max);
};

#[agora_guest::main]
async fn flooder(graft: Graft) -> Result<(), Error> {
    let Some(channel) = graft.channels().next() else {
        flood_output();
        return Err(graft.ended().await);
    };
    let reads = graft.terms(channel.name()).is_some_and(|terms| terms.read);
    let info = channel.info().await?;
    if !reads || info.latest <= info.cursor {
        agora_guest::info!("{}", flood_calls(&channel, CALLS).await.report("calls"));
    }
    if !reads {
        return Err(graft.ended().await);
    }
    let mut heard = channel.subscribe().await?;
    while let Some(message) = heard.next().await? {
        let flood = Flood::named(&message.text());
        if flood.is_lethal() {
            channel.pass(&message).await?;
        }
        let report = match flood {
            Flood::Calls => flood_calls(&channel, CALLS).await.report("calls"),
            Flood::Questions => flood_questions(&graft).await,
            Flood::Facets => flood_facets(&channel).await,
            Flood::Output => {
                flood_output();
                format!("flooder: output lines={LINES}")
            }
            Flood::Frames => {
                wire::offer(&[vec![0; FRAME_BYTES]]);
                "flooder: the frame was taken".into()
            }
            Flood::Batch => {
                wire::offer(&vec![vec![0; 8]; BATCH_FRAMES]);
                "flooder: the batch was taken".into()
            }
            Flood::Malformed => {
                wire::offer(&garbage());
                "flooder: the garbage was taken".into()
            }
            Flood::Chain => {
                raw::chain();
                "flooder: the chain was taken".into()
            }
            Flood::Parcels => {
                raw::parcels();
                "flooder: the parcels were taken".into()
            }
            Flood::Leak => {
                raw::grafts(false);
                "flooder: the leak was taken".into()
            }
            Flood::Regraft => {
                raw::grafts(true);
                // What its own vat was to hear went to the grafts.
                panic!("flooder: the grafts were taken back");
            }
            Flood::Lines => {
                flood_lines();
                "flooder: lines".into()
            }
            Flood::Write => {
                wire::write_lines();
                "flooder: the write was taken".into()
            }
            Flood::Honest => live_honestly(&channel).await?,
        };
        agora_guest::info!("{report}");
        if flood.is_lethal() {
            // The host's verdict comes with the next frame.
            channel.say(Draft::inform(report)).await?.ok();
        } else if let Err(refused) = channel.reply(&message, Draft::inform(report)).await? {
            agora_guest::info!("flooder: the report was refused: {refused}");
        }
        if matches!(flood, Flood::Facets | Flood::Honest) {
            // The flood replaced the subscription. Not before the answer, or the order would be heard again.
            heard = channel.subscribe().await?;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    Calls,
    Questions,
    Frames,
    Batch,
    Facets,
    Output,
    Malformed,
    Chain,
    Parcels,
    Leak,
    Regraft,
    Lines,
    Write,
    Honest,
}

impl Flood {
    fn named(text: &str) -> Self {
        match text.trim() {
            "questions" => Self::Questions,
            "frames" => Self::Frames,
            "batch" => Self::Batch,
            "facets" => Self::Facets,
            "output" => Self::Output,
            "malformed" => Self::Malformed,
            "chain" => Self::Chain,
            "parcels" => Self::Parcels,
            "leak" => Self::Leak,
            "regraft" => Self::Regraft,
            "lines" => Self::Lines,
            "write" => Self::Write,
            "honest" => Self::Honest,
            _ => Self::Calls,
        }
    }

    /// Whether the host must end it for that.
    fn is_lethal(self) -> bool {
        match self {
            Self::Questions | Self::Frames | Self::Batch | Self::Malformed => true,
            Self::Chain | Self::Parcels | Self::Leak | Self::Regraft | Self::Write => true,
            Self::Calls | Self::Facets | Self::Output | Self::Lines | Self::Honest => false,
        }
    }
}

/// How calls ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    ok: u32,
    refused: u32,
    busy: u32,
    other: u32,
}

impl Tally {
    fn count(&mut self, answer: Result<bool, Kind>) {
        match answer {
            Ok(true) => self.ok += 1,
            Ok(false) => self.refused += 1,
            Err(Kind::Busy) => self.busy += 1,
            Err(_) => self.other += 1,
        }
    }

    fn of(answers: impl IntoIterator<Item = Result<bool, Kind>>) -> Self {
        let mut tally = Self::default();
        answers.into_iter().for_each(|answer| tally.count(answer));
        tally
    }

    fn report(&self, what: &str) -> String {
        let Self {
            ok,
            refused,
            busy,
            other,
        } = self;
        format!("flooder: {what} ok={ok} refused={refused} busy={busy} other={other}")
    }
}

async fn flood_calls(channel: &Channel, calls: usize) -> Tally {
    // Each is sent when it is made, so all are in flight before the first is awaited.
    let said: Vec<_> = (0..calls)
        .map(|n| channel.say(Draft::inform(format!("flood {n}"))))
        .collect();
    let answers = join_all(said).await;
    Tally::of(answers.into_iter().map(|answer| match answer {
        Ok(outcome) => Ok(outcome.is_ok()),
        Err(error) => Err(error.kind()),
    }))
}

async fn flood_questions(graft: &Graft) -> String {
    // The one call that is answered only by the end.
    join_all((0..QUESTIONS).map(|_| graft.ended())).await;
    "flooder: the questions were taken".into()
}

async fn flood_facets(channel: &Channel) -> String {
    let terms = Terms::all();
    // Kept, so that all of them live at once.
    let facets = join_all((0..FACETS).map(|_| channel.attenuate(&terms))).await;
    let heard = join_all((0..FACETS).map(|_| channel.subscribe())).await;
    let made = facets
        .iter()
        .map(|facet| facet.as_ref().map(|_| true).map_err(Error::kind));
    let subscribed = heard
        .iter()
        .map(|heard| heard.as_ref().map(|_| true).map_err(Error::kind));
    let (made, subscribed) = (Tally::of(made), Tally::of(subscribed));
    format!(
        "{}; {}",
        made.report("facets"),
        subscribed.report("subscriptions")
    )
}

fn flood_output() {
    for n in 0..LINES {
        agora_guest::info!("flood {n}");
    }
    agora_guest::warn!("{}", "x".repeat(LINE_BYTES));
}

fn flood_lines() {
    use std::io::Write;
    let lines = b"x\n".repeat(2 << 20);
    for _ in 0..4 {
        // Output is always taken.
        let _ = std::io::stdout().write_all(&lines);
    }
}

/// What an agent may do for ever: subscribe and call, and let go of all of it.
async fn live_honestly(channel: &Channel) -> Result<String, Error> {
    for _ in 0..ROUNDS {
        drop(channel.subscribe().await?);
        for _ in 0..8 {
            channel.info().await?;
        }
    }
    Ok(format!("flooder: honest rounds={ROUNDS}"))
}

/// Calls that the SDK would not make, as frames.
mod raw {
    use agora_capnp::membrane_capnp::{membrane, session};
    use capnp::traits::HasTypeId;
    use capnp_rpc::rpc_capnp::{call, message};

    use super::{CHAIN, LEAKS, PARCEL_BYTES, PARCELS, wire};

    /// The first question, far from those of the SDK's own vat.
    const FIRST: u32 = 0x4000_0000;
    /// `session` among the results of `graft`.
    const SESSION: u16 = 2;

    fn frame(build: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
        let mut message = capnp::message::Builder::new_default();
        build(message.init_root());
        capnp::serialize::write_message_to_words(&message)
    }

    fn bootstrap() -> Vec<u8> {
        frame(|m| m.init_bootstrap().set_question_id(FIRST))
    }

    fn graft(question: u32) -> Vec<u8> {
        frame(|m| {
            let mut call = m.init_call();
            call.set_question_id(question);
            call.set_interface_id(membrane::Client::TYPE_ID);
            let target = call.reborrow().init_target();
            target.init_promised_answer().set_question_id(FIRST);
            call.init_params();
        })
    }

    fn ended(question: u32, on: u32, field: u16, fill: impl FnOnce(call::Builder<'_>)) -> Vec<u8> {
        frame(|m| {
            let mut call = m.init_call();
            call.set_question_id(question);
            call.set_interface_id(session::Client::TYPE_ID);
            let mut target = call.reborrow().init_target().init_promised_answer();
            target.set_question_id(on);
            let transform = target.init_transform(1);
            transform.get(0).set_get_pointer_field(field);
            fill(call);
        })
    }

    /// Each call is on what the one before is to answer.
    pub(super) fn chain() {
        wire::offer(&[bootstrap(), graft(FIRST + 1)]);
        let first = FIRST + 1;
        for on in first..first + CHAIN as u32 {
            let field = if on == first { SESSION } else { 0 };
            wire::offer(&[ended(on + 1, on, field, |call| {
                call.init_params();
            })]);
        }
    }

    /// Large calls that are answered only by the end.
    pub(super) fn parcels() {
        wire::offer(&[bootstrap(), graft(FIRST + 1)]);
        let parcel = vec![7; PARCEL_BYTES];
        for n in 0..PARCELS as u32 {
            let call = ended(FIRST + 2 + n, FIRST + 1, SESSION, |call| {
                let mut content = call.init_params().init_content();
                let set = content.set_as::<capnp::data::Owned>(&parcel[..]);
                set.expect("bytes fit a message");
            });
            // Not an exchange, which would wait for an answer.
            wire::offer(&[call]);
        }
    }

    /// Grafts that are finished with, and so are their capabilities, or not.
    pub(super) fn grafts(release: bool) {
        wire::offer(&[bootstrap()]);
        for question in FIRST + 1..=FIRST + LEAKS as u32 {
            let finish = frame(|m| {
                let mut finish = m.init_finish();
                finish.set_question_id(question - 1);
                finish.set_release_result_caps(release);
            });
            let mut frames = vec![graft(question)];
            if question > FIRST + 1 {
                frames.insert(0, finish);
            }
            wire::exchange(&frames);
        }
    }
}

/// Frames that no vat would send.
fn garbage() -> Vec<Vec<u8>> {
    let mut state = 0x2545_f491_u32;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    let framed = |words: &[[u8; 8]]| -> Vec<u8> {
        let mut frame = vec![0, 0, 0, 0, words.len() as u8, 0, 0, 0];
        frame.extend(words.iter().flatten());
        frame
    };
    vec![
        // A root pointer that points to itself, as a list far longer than the frame.
        framed(&[[0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]]),
        // A message of a kind that there is none of.
        framed(&[[0, 0, 0, 0, 1, 0, 1, 0], [0xff; 8], [0; 8]]),
        // Four thousand million segments.
        vec![0xff; 16],
        (0..4096).map(|_| noise()).collect(),
        // Nothing.
        Vec::new(),
    ]
}

/// The wire and the output themselves, past the SDK's own bounds and those of the standard library.
#[cfg(target_family = "wasm")]
#[allow(
    unsafe_code,
    reason = "the standard library never writes more than it may"
)]
mod wire {
    use agora_guest::vat::component::agora::agent::wire;

    #[link(wasm_import_module = "wasi:io/streams@0.2.6")]
    unsafe extern "C" {
        #[link_name = "[method]output-stream.write"]
        fn stream_write(handle: i32, bytes: *const u8, len: usize, result: *mut u8);
    }

    #[link(wasm_import_module = "wasi:cli/stdout@0.2.6")]
    unsafe extern "C" {
        #[link_name = "get-stdout"]
        fn get_stdout() -> i32;
    }

    pub(super) fn offer(frames: &[Vec<u8>]) {
        // A closed wire shows at the next call.
        let _ = wire::offer(frames);
    }

    pub(super) fn exchange(frames: &[Vec<u8>]) {
        // What comes is for nobody.
        let _ = wire::exchange(frames);
    }

    pub(super) fn write_lines() {
        let lines = b"x\n".repeat(super::WRITE_BYTES / 2);
        let mut result = [0u32; 4];
        // SAFETY: the bytes outlive the call, and the result has room for a variant of an error.
        unsafe {
            stream_write(
                get_stdout(),
                lines.as_ptr(),
                lines.len(),
                result.as_mut_ptr().cast(),
            )
        }
    }
}

/// Off wasm there is none.
#[cfg(not(target_family = "wasm"))]
mod wire {
    pub(super) fn offer(_frames: &[Vec<u8>]) {}
    pub(super) fn exchange(_frames: &[Vec<u8>]) {}
    pub(super) fn write_lines() {
        let _ = super::WRITE_BYTES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_named_by_one_word() {
        assert_eq!(Flood::named("facets\n"), Flood::Facets);
        assert_eq!(Flood::named("calls"), Flood::Calls);
        assert_eq!(Flood::named("anything else"), Flood::Calls);
    }

    #[test]
    fn the_report_says_how_calls_ended() {
        let tally = Tally::of([
            Ok(true),
            Ok(true),
            Ok(false),
            Err(Kind::Busy),
            Err(Kind::Failed),
        ]);
        assert_eq!(
            tally.report("calls"),
            "flooder: calls ok=2 refused=1 busy=1 other=1"
        );
    }

    #[test]
    fn garbage_is_small_so_that_only_what_it_says_is_wrong() {
        let bytes: usize = garbage().iter().map(Vec::len).sum();
        assert!(bytes < agora_guest::wire::FRAME_BYTES_MAX);
    }
}
