//! Asks which release plan to take, and revises it when it is refused.
//!
//! In: requests without a plan; refusals of its own plans. Out: on first arrival one `request` that opens a thread for `owner`
//! to decide; then a `propose` for each refusal that names a rule, at most [`DRAFTS_MAX`] drafts in a thread.
//! Promise: it asks once in its life, however often it is restarted or the epoch ends: it looks at what it said before,
//! and the message's key makes a repeat harmless.
//! Failure: an answer that is refused is logged; when the log is away it fails and is started again, and hears again what
//! it did not answer.
//!
//! A request that holds no plan, as from a person, is answered with its first draft.

use std::collections::VecDeque;
use std::time::Duration;

use agora_guest::MessageId;
use agora_guest::prelude::*;
use release_plan::{CHANGES_MAX, Objection, Offer, Plan, Rule, draft, read, recent};

/// Who decides.
const OWNER: &str = "owner";
/// How long they have.
const DEADLINE: Duration = Duration::from_secs(30);
/// The key of the one message that it starts a thread with.
const ASK_KEY: u64 = 1;
/// After so many drafts it gives up.
const DRAFTS_MAX: u32 = 3;
/// How many of its own offers it keeps in mind.
const OFFERS_MAX: usize = 64;

#[agora_guest::main]
async fn planner(graft: Graft) -> Result<(), Error> {
    let channel = release_plan::channel(&graft)?;
    let mut planner = Planner::default();
    for message in recent(&channel).await? {
        planner.recall(&message);
    }
    if !planner.asked {
        let mut request = draft(Act::Request, &question()).key(ASK_KEY);
        // Nobody of this host decides at another; there an agreement is all that is asked for.
        if !channel.name().contains('/') {
            request = request.owner(OWNER).deadline(DEADLINE);
        }
        planner.offered(channel.say(request).await?, question().plan);
    }
    let mut heard = channel.subscribe().await?;
    while let Some(message) = heard.next().await? {
        match planner.answer(&message) {
            Some(plan) => {
                let offer = Offer { ask: None, plan };
                let outcome = channel.reply(&message, draft(Act::Propose, &offer)).await?;
                planner.offered(outcome, offer.plan);
            }
            None => channel.pass(&message).await?,
        }
    }
    Ok(())
}

/// The plan it begins with: one change too many, and no way back.
fn first() -> Plan {
    Plan {
        draft: 1,
        changes: ["search", "login", "export", "billing"]
            .map(String::from)
            .into(),
        rollback: None,
    }
}

fn question() -> Offer {
    Offer {
        ask: Some("which plan for release 1.4?".into()),
        plan: first(),
    }
}

/// The next draft, with these rules kept.
fn revised(mut plan: Plan, rules: &[Rule]) -> Plan {
    plan.draft += 1;
    for rule in rules {
        match rule {
            Rule::R1 => plan.changes.truncate(CHANGES_MAX),
            Rule::R2 => plan.rollback = Some("redeploy 1.3".into()),
        }
    }
    plan
}

/// What it keeps in mind.
#[derive(Default)]
struct Planner {
    asked: bool,
    offers: VecDeque<(MessageId, Plan)>,
}

impl Planner {
    /// Takes note of what was said before this arrival.
    fn recall(&mut self, message: &Message) {
        if !message.mine {
            return;
        }
        self.asked |= message.parent.is_none() && message.act == Act::Request;
        if let Some(offer) = read::<Offer>(message) {
            self.keep(message.id, offer.plan);
        }
    }

    fn keep(&mut self, id: MessageId, plan: Plan) {
        if self.offers.len() == OFFERS_MAX {
            self.offers.pop_front();
        }
        self.offers.push_back((id, plan));
    }

    /// Takes note of what became of an offer.
    fn offered(&mut self, outcome: Result<Receipt, Refused>, plan: Plan) {
        match outcome {
            Ok(receipt) => self.keep(receipt.id, plan),
            Err(refused) => agora_guest::info!("draft {} was not taken: {refused}", plan.draft),
        }
    }

    /// What to propose in answer; `None` is silence.
    fn answer(&self, message: &Message) -> Option<Plan> {
        match message.act {
            Act::Request if message.parent.is_none() && read::<Offer>(message).is_none() => {
                Some(first())
            }
            Act::Refuse => {
                let (_, plan) = self
                    .offers
                    .iter()
                    .find(|(id, _)| Some(*id) == message.parent)?;
                let objection = read::<Objection>(message)?;
                let hopeless = objection.rules.is_empty() || plan.draft >= DRAFTS_MAX;
                (!hopeless).then(|| revised(plan.clone(), &objection.rules))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: u8, parent: Option<u8>, act: Act, payload: &str) -> Message {
        Message {
            ordinal: u64::from(id),
            id: MessageId([id; 32]),
            parent: parent.map(|id| MessageId([id; 32])),
            thread: MessageId([1; 32]),
            author: "someone@00000000".into(),
            act,
            hops: 3,
            content_type: String::new(),
            payload: payload.into(),
            time_ms: 0,
            epoch: 1,
            owner: None,
            deadline_ms: None,
            mine: false,
        }
    }

    fn after_asking() -> Planner {
        let mut planner = Planner::default();
        planner.keep(MessageId([1; 32]), first());
        planner
    }

    const BOTH: &str = r#"{"rules":["R1","R2"],"why":"..."}"#;

    #[test]
    fn what_it_asked_before_is_not_asked_again() {
        let mut planner = Planner::default();
        let mut earlier = message(
            1,
            None,
            Act::Request,
            r#"{"plan":{"draft":1,"changes":[]}}"#,
        );
        planner.recall(&earlier);
        assert!(!planner.asked, "it was someone else's");
        earlier.mine = true;
        planner.recall(&earlier);
        assert!(planner.asked);
        assert_eq!(planner.offers.len(), 1);
    }

    #[test]
    fn a_refusal_is_answered_with_a_plan_that_keeps_the_rules_it_names() {
        let plan = after_asking().answer(&message(2, Some(1), Act::Refuse, BOTH));
        let plan = plan.expect("it revises");
        assert_eq!((plan.draft, plan.broken()), (2, vec![]));
    }

    #[test]
    fn it_is_silent_about_what_is_none_of_its_own() {
        let planner = after_asking();
        for silent in [
            message(3, Some(2), Act::Refuse, BOTH),
            message(3, Some(1), Act::Refuse, "just no"),
            message(3, Some(1), Act::Refuse, r#"{"rules":[],"why":"no"}"#),
            message(3, Some(1), Act::Agree, BOTH),
            message(3, Some(1), Act::Decide, "{}"),
            message(3, None, Act::Inform, "hello"),
        ] {
            assert_eq!(planner.answer(&silent), None, "{silent:?}");
        }
    }

    #[test]
    fn it_gives_up_in_the_end() {
        let mut planner = after_asking();
        for id in 1..DRAFTS_MAX as u8 {
            let plan = planner.answer(&message(9, Some(id), Act::Refuse, BOTH));
            planner.keep(MessageId([id + 1; 32]), plan.expect("it revises"));
        }
        let last = message(9, Some(DRAFTS_MAX as u8), Act::Refuse, BOTH);
        assert_eq!(planner.answer(&last), None);
    }

    #[test]
    fn a_person_who_asks_is_offered_the_first_draft() {
        let asked = message(1, None, Act::Request, "what shall we release?");
        assert_eq!(Planner::default().answer(&asked), Some(first()));
    }

    #[test]
    fn it_keeps_only_so_many_offers_in_mind() {
        let mut planner = Planner::default();
        for id in 0..=OFFERS_MAX as u8 {
            planner.keep(MessageId([id; 32]), first());
        }
        assert_eq!(planner.offers.len(), OFFERS_MAX);
        assert_eq!(planner.offers[0].0, MessageId([1; 32]));
    }
}
