//! The threads that wait for a decision.
//!
//! In: messages, in the channel's order; the same one again does no harm. Out: the decision that one calls for; the moment
//! by which the next thread must be decided.
//! Promise: bounded. Of too many threads, or too many offers in one, the oldest are forgotten; they lapse.

use std::collections::VecDeque;

use agora_guest::MessageId;
use agora_guest::prelude::*;
use release_plan::{Decision, Offer, Plan, read};

/// Threads kept in mind, those that are closed among them.
const THREADS_MAX: usize = 256;
/// Offers of one thread kept in mind.
const OFFERS_MAX: usize = 16;
/// It decides so long before the deadline, in milliseconds.
const MARGIN_MS: i64 = 5_000;
/// But never earlier than when this part of the time was left.
const MARGIN_PART: i64 = 4;

pub(crate) struct Docket {
    me: String,
    threads: VecDeque<Thread>,
}

struct Thread {
    request: MessageId,
    due_ms: Option<i64>,
    offers: VecDeque<(MessageId, Plan)>,
    open: bool,
}

/// What is decided when nobody agreed in time.
pub(crate) fn no_release() -> Decision {
    Decision {
        release: false,
        plan: None,
        why: "the deadline is close and no plan was agreed to".into(),
    }
}

impl Docket {
    pub(crate) fn new(me: &str) -> Self {
        Self {
            me: me.to_owned(),
            threads: VecDeque::new(),
        }
    }

    /// Takes note of a message. The decision it calls for, if it does: the thread stays open until [`Docket::close`].
    pub(crate) fn hear(&mut self, message: &Message) -> Option<Decision> {
        if message.act == Act::Decide && message.mine {
            self.close(message.thread);
            return None;
        }
        if message.parent.is_none() {
            self.open(message);
        }
        let thread = self.find(message.thread).filter(|thread| thread.open)?;
        match message.act {
            Act::Request | Act::Propose => {
                let offer = read::<Offer>(message)?;
                if thread.offers.iter().all(|(id, _)| *id != message.id) {
                    if thread.offers.len() == OFFERS_MAX {
                        thread.offers.pop_front();
                    }
                    thread.offers.push_back((message.id, offer.plan));
                }
                None
            }
            Act::Agree => {
                let offered = |(id, _): &&(MessageId, Plan)| Some(*id) == message.parent;
                let (_, plan) = thread.offers.iter().find(offered)?;
                Some(Decision {
                    release: true,
                    plan: Some(plan.clone()),
                    why: format!("{} agreed", message.author_name()),
                })
            }
            _ => None,
        }
    }

    fn open(&mut self, message: &Message) {
        let mine = message.act == Act::Request && message.owner.as_ref() == Some(&self.me);
        if !mine || self.find(message.id).is_some() {
            return;
        }
        if self.threads.len() == THREADS_MAX {
            self.threads.pop_front();
        }
        self.threads.push_back(Thread {
            request: message.id,
            due_ms: message.deadline_ms.map(|deadline_ms| {
                let span_ms = deadline_ms.saturating_sub(message.time_ms).max(0);
                deadline_ms - MARGIN_MS.min(span_ms / MARGIN_PART)
            }),
            offers: VecDeque::new(),
            open: true,
        });
    }

    /// The thread is decided, or can't be any more.
    pub(crate) fn close(&mut self, request: MessageId) {
        if let Some(thread) = self.find(request) {
            thread.open = false;
            thread.offers.clear();
        }
    }

    /// When the next thread must be decided, and its request.
    pub(crate) fn next_due(&self) -> Option<(i64, MessageId)> {
        self.threads
            .iter()
            .filter(|thread| thread.open)
            .filter_map(|thread| Some((thread.due_ms?, thread.request)))
            .min()
    }

    fn find(&mut self, request: MessageId) -> Option<&mut Thread> {
        self.threads
            .iter_mut()
            .find(|thread| thread.request == request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: &str = "owner@00000000";
    const BAD: &str = r#"{"plan":{"draft":1,"changes":["a","b","c","d"],"rollback":null}}"#;
    const GOOD: &str = r#"{"plan":{"draft":2,"changes":["a"],"rollback":"redeploy"}}"#;

    fn id(n: u8) -> MessageId {
        MessageId([n; 32])
    }

    fn message(n: u8, parent: u8, act: Act, payload: &str) -> Message {
        Message {
            ordinal: u64::from(n),
            id: id(n),
            parent: Some(id(parent)),
            thread: id(1),
            author: "reviewer@00000000".into(),
            act,
            hops: 3,
            content_type: String::new(),
            payload: payload.into(),
            time_ms: 1_000,
            epoch: 1,
            owner: None,
            deadline_ms: None,
            mine: false,
        }
    }

    fn request(n: u8, deadline_ms: i64) -> Message {
        Message {
            parent: None,
            thread: id(n),
            owner: Some(ME.into()),
            deadline_ms: Some(deadline_ms),
            ..message(n, 0, Act::Request, BAD)
        }
    }

    fn negotiated() -> Docket {
        let mut docket = Docket::new(ME);
        assert_eq!(docket.hear(&request(1, 31_000)), None);
        assert_eq!(docket.hear(&message(2, 1, Act::Refuse, "{}")), None);
        assert_eq!(docket.hear(&message(3, 2, Act::Propose, GOOD)), None);
        docket
    }

    #[test]
    fn the_plan_that_was_agreed_to_is_released() {
        let mut docket = negotiated();
        let agreed = message(4, 3, Act::Agree, r#"{"draft":1,"why":"a claim"}"#);
        let decision = docket.hear(&agreed).expect("it decides");
        assert!(decision.release);
        assert_eq!(
            decision.plan.map(|plan| plan.draft),
            Some(2),
            "what it answers, not what it claims"
        );
        docket.close(id(1));
        assert_eq!(docket.next_due(), None);
        assert_eq!(
            docket.hear(&message(5, 3, Act::Agree, "{}")),
            None,
            "it decides once"
        );
    }

    #[test]
    fn an_agreement_to_what_is_no_offer_decides_nothing() {
        let mut docket = negotiated();
        assert_eq!(docket.hear(&message(4, 2, Act::Agree, GOOD)), None);
        let mut stray = message(5, 3, Act::Agree, GOOD);
        stray.thread = id(9);
        assert_eq!(docket.hear(&stray), None);
    }

    #[test]
    fn a_thread_that_another_owns_is_left_alone() {
        let mut docket = Docket::new(ME);
        for owner in [None, Some("owner@11111111".to_owned())] {
            docket.hear(&Message {
                owner,
                ..request(1, 31_000)
            });
        }
        assert_eq!(docket.next_due(), None);
        assert_eq!(docket.hear(&message(2, 1, Act::Agree, "{}")), None);
    }

    #[test]
    fn it_is_due_before_the_deadline_but_not_at_once() {
        let mut docket = Docket::new(ME);
        docket.hear(&request(1, 31_000));
        assert_eq!(docket.next_due(), Some((26_000, id(1))));
        docket.hear(&request(2, 3_000));
        assert_eq!(
            docket.next_due(),
            Some((2_500, id(2))),
            "a short one keeps most of its time"
        );
        docket.close(id(2));
        assert_eq!(docket.next_due(), Some((26_000, id(1))));
    }

    #[test]
    fn reading_it_all_again_changes_nothing() {
        let mut docket = negotiated();
        let mine = Message {
            mine: true,
            ..message(5, 4, Act::Decide, "{}")
        };
        docket.hear(&mine);
        assert_eq!(docket.next_due(), None);
        docket.hear(&request(1, 31_000));
        assert_eq!(docket.next_due(), None, "what was decided stays so");
    }

    #[test]
    fn it_forgets_the_oldest_past_its_bounds() {
        let mut docket = negotiated();
        for n in 10..=10 + OFFERS_MAX as u8 {
            docket.hear(&message(n, 2, Act::Propose, GOOD));
        }
        assert_eq!(docket.threads[0].offers.len(), OFFERS_MAX);
        for n in 0..=THREADS_MAX as u16 {
            let mut other = request(0, 31_000);
            other.id.0[..2].copy_from_slice(&n.to_be_bytes());
            docket.hear(&other);
        }
        assert_eq!(docket.threads.len(), THREADS_MAX);
    }
}
