//! What comes by on a log's tail, in lots that are verified together.
//!
//! In: the tail. Out: lots, in order: as much as is there already, and never waited for.
//! Promise: entries keep their order; what one lot holds is bounded; verifying uses all cores, and nobody's turn on the runtime.
//! Failure: why a tail ended comes behind the last lot.

use agora_log::export::Place;
use agora_log::{LogError, Seq};
use agora_realm::{Junk, Sealed, Verifier, merkle};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};

use super::pruned::open_place_with;
use crate::limits;

/// A log's tail.
pub(super) type Tail = BoxStream<'static, Result<(Seq, Bytes), LogError>>;

/// What came by together.
pub(super) struct Lot {
    /// The places, in order.
    pub(super) places: Vec<(Seq, Bytes)>,
    /// Why nothing comes behind them, where that is so.
    pub(super) end: Option<LogError>,
}

/// The next lot, once something has come by. May be dropped while it waits: nothing is lost.
pub(super) async fn next(tail: &mut Tail) -> Lot {
    let mut lot = Lot {
        places: Vec::new(),
        end: None,
    };
    let mut bytes = 0;
    let mut came = tail.next().await;
    loop {
        match came {
            Some(Ok(place)) => {
                bytes += place.1.len();
                lot.places.push(place);
            }
            Some(Err(error)) => lot.end = Some(error),
            None => lot.end = Some(LogError::Closed),
        }
        if lot.end.is_some()
            || lot.places.len() >= limits::TAIL_LOT_ENTRIES
            || bytes >= limits::TAIL_LOT_BYTES
        {
            return lot;
        }
        match tail.next().now_or_never() {
            Some(next) => came = next,
            None => return lot,
        }
    }
}

/// What stands at a place: its seq, its hash in the tree, and the entry.
pub(crate) type Read = (u64, merkle::Hash, Result<Sealed, Junk>);

/// Parses, hashes and verifies entries on all cores, keeping their order.
pub(crate) async fn open_all(batch: Vec<(u64, Place)>) -> Vec<Read> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let chunk = batch.len().div_ceil(cores).max(limits::VERIFIED_BY_ONE_MIN);
    let mut batch = batch.into_iter().peekable();
    let mut tasks = Vec::new();
    while batch.peek().is_some() {
        let part: Vec<_> = batch.by_ref().take(chunk).collect();
        tasks.push(tokio::task::spawn_blocking(move || {
            let mut verifier = Verifier::new();
            part.into_iter()
                .map(|(seq, place)| (seq, place.leaf(), open_place_with(place, &mut verifier)))
                .collect::<Vec<_>>()
        }));
    }
    let mut opened = Vec::new();
    for task in tasks {
        opened.extend(
            task.await
                .expect("verifying does not panic, and is never aborted"),
        );
    }
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(
        seqs: std::ops::RangeInclusive<u64>,
        bytes: usize,
    ) -> Vec<Result<(Seq, Bytes), LogError>> {
        seqs.map(|seq| Ok((Seq(seq), Bytes::from(vec![0; bytes]))))
            .collect()
    }

    async fn lots_of(tail: Vec<Result<(Seq, Bytes), LogError>>) -> Vec<(Vec<u64>, bool)> {
        let mut tail: Tail = futures::stream::iter(tail).boxed();
        let mut lots = Vec::new();
        loop {
            let lot = next(&mut tail).await;
            let seqs = lot.places.iter().map(|(seq, _)| seq.0).collect();
            lots.push((seqs, lot.end.is_some()));
            if lot.end.is_some() {
                return lots;
            }
        }
    }

    #[tokio::test]
    async fn lots_keep_the_order_and_are_bounded_by_count_and_by_bytes() {
        let most = limits::TAIL_LOT_ENTRIES as u64;
        let lots = lots_of(places(1..=most + 3, 10)).await;
        assert_eq!(
            lots,
            [
                ((1..=most).collect(), false),
                ((most + 1..=most + 3).collect(), true)
            ]
        );
        let lots = lots_of(places(1..=3, limits::TAIL_LOT_BYTES)).await;
        assert_eq!(
            lots,
            [
                (vec![1], false),
                (vec![2], false),
                (vec![3], false),
                (vec![], true)
            ]
        );
    }

    #[tokio::test]
    async fn a_tails_end_comes_behind_what_came_before_it() {
        let mut tail = places(1..=2, 10);
        tail.push(Err(LogError::Closed));
        assert_eq!(lots_of(tail).await, [(vec![1, 2], true)]);
    }

    #[tokio::test]
    async fn what_is_not_there_yet_is_not_waited_for() {
        let (send, receive) = futures::channel::mpsc::unbounded();
        let mut tail: Tail = receive.boxed();
        send.unbounded_send(Ok((Seq(1), Bytes::new()))).unwrap();
        let lot = next(&mut tail).await;
        assert!(lot.places.len() == 1 && lot.end.is_none());
        assert!(next(&mut tail).now_or_never().is_none());
        send.unbounded_send(Ok((Seq(2), Bytes::new()))).unwrap();
        assert_eq!(next(&mut tail).await.places[0].0, Seq(2));
    }
}
