//! A leash: cuts a facet and all that was made from it, calls in flight included.
//!
//! In: a cut, at most once. Promise: whatever is held on the leash, or on one below it, is dropped at its next poll, which comes at once,
//! and fails as stale with the reason. Failure: none; one thread.

use std::cell::{OnceCell, RefCell};
use std::future::Future;
use std::rc::{Rc, Weak};

use agora_membrane::error;
use capnp::Error;
use tokio::sync::Notify;

/// A leash. Clones are the same leash.
#[derive(Clone, Default)]
pub struct Leash(Rc<Inner>);

#[derive(Default)]
struct Inner {
    cut: OnceCell<Error>,
    told: Notify,
    below: RefCell<Vec<Weak<Inner>>>,
}

impl Leash {
    /// One that is cut with this one, and may be cut alone.
    #[must_use]
    pub fn below(&self) -> Self {
        let leash = Self::default();
        leash.hang_below(self);
        leash
    }

    /// Is cut with one more from here on.
    pub fn hang_below(&self, above: &Self) {
        match above.0.cut.get() {
            Some(error) => self.0.cut(error),
            None => {
                let mut below = above.0.below.borrow_mut();
                if below.len() == below.capacity() {
                    below.retain(|leash| leash.strong_count() > 0);
                }
                below.push(Rc::downgrade(&self.0));
            }
        }
    }

    /// Cuts it, and all below. The first reason stays.
    pub fn cut(&self, reason: &str) {
        self.0.cut(&error::stale(reason));
    }

    /// The stale error, once it is cut.
    pub fn stale(&self) -> Option<&Error> {
        self.0.cut.get()
    }

    /// Answers once it is cut.
    pub async fn ended(&self) -> Error {
        loop {
            let told = self.0.told.notified();
            if let Some(error) = self.stale() {
                return error.clone();
            }
            told.await;
        }
    }

    /// Does this unless, or until, it is cut.
    ///
    /// # Errors
    /// Stale once it is cut; else what `work` answers.
    pub async fn hold<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            biased;
            error = self.ended() => Err(error),
            done = work => done,
        }
    }
}

impl Inner {
    fn cut(&self, error: &Error) {
        if self.cut.set(error.clone()).is_err() {
            return;
        }
        self.told.notify_waiters();
        let below = self.below.take();
        for leash in below.iter().filter_map(Weak::upgrade) {
            leash.cut(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agora_membrane::error::{Kind, classify};

    #[tokio::test]
    async fn a_cut_goes_down_and_not_up() {
        let root = Leash::default();
        let (left, right) = (root.below(), root.below());
        let leaf = left.below();
        left.cut("that one");
        assert!(root.stale().is_none() && right.stale().is_none());
        for cut in [&left, &leaf, &leaf.below()] {
            let refused = cut.hold(async { Ok(()) }).await.unwrap_err();
            assert_eq!(classify(&refused), Kind::Stale);
            assert!(refused.extra.contains("that one"));
        }
        root.cut("all");
        assert!(right.stale().unwrap().extra.contains("all"));
        assert!(left.stale().unwrap().extra.contains("that one"));
    }

    #[tokio::test]
    async fn what_hangs_below_two_is_cut_with_either() {
        let (one, two) = (Leash::default(), Leash::default());
        let (leaf, other) = (one.below(), one.below());
        leaf.hang_below(&two);
        let below = leaf.below();
        two.cut("the second");
        assert!(one.stale().is_none() && other.stale().is_none());
        assert!(leaf.stale().is_some() && below.stale().is_some());
        other.hang_below(&two);
        assert!(other.stale().unwrap().extra.contains("the second"));
    }

    #[tokio::test]
    async fn what_is_held_is_dropped_and_told() {
        let (root, work) = (Leash::default(), Rc::new(()));
        let (leaf, holding) = (root.below(), work.clone());
        let held = leaf.hold(async move {
            let _holding = holding;
            std::future::pending::<Result<(), Error>>().await
        });
        let cut = async {
            tokio::task::yield_now().await;
            root.cut("now");
        };
        let (held, ()) = tokio::join!(held, cut);
        assert_eq!(classify(&held.unwrap_err()), Kind::Stale);
        assert_eq!(Rc::strong_count(&work), 1);
    }
}
