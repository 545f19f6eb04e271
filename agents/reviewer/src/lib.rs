//! Agrees to a release plan, or refuses it and names every rule it breaks.
//!
//! In: requests and proposals that hold a plan. Out: one `agree` or `refuse` for each.
//! Promise: what it says follows from the plan alone; it keeps nothing in mind.
//! Failure: an answer that is refused (the thread was decided meanwhile, its hops are spent) is logged; when the log is away
//! it fails and is started again, and hears again what it did not answer.

use agora_guest::prelude::*;
use release_plan::{Agreement, Objection, Offer, draft, read};

#[agora_guest::main]
async fn reviewer(graft: Graft) -> Result<(), Error> {
    let channel = release_plan::channel(&graft)?;
    let mut heard = channel.subscribe().await?;
    while let Some(message) = heard.next().await? {
        let answer = match review(&message) {
            Some(Review::Agree(agreement)) => draft(Act::Agree, &agreement),
            Some(Review::Refuse(objection)) => draft(Act::Refuse, &objection),
            None => {
                channel.pass(&message).await?;
                continue;
            }
        };
        if let Err(refused) = channel.reply(&message, answer).await? {
            agora_guest::info!("the review of {} was not taken: {refused}", message.ordinal);
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Review {
    Agree(Agreement),
    Refuse(Objection),
}

/// What to say to a message; `None` is silence.
fn review(message: &Message) -> Option<Review> {
    let Some(Offer { plan, .. }) = offer(message) else {
        // Whoever proposes waits for an answer.
        return (message.act == Act::Propose).then(|| {
            Review::Refuse(Objection {
                rules: Vec::new(),
                why: "there is no plan in it that can be read".into(),
            })
        });
    };
    let rules = plan.broken();
    Some(match rules.is_empty() {
        true => Review::Agree(Agreement {
            draft: plan.draft,
            why: "R1 and R2 are kept".into(),
        }),
        false => Review::Refuse(Objection {
            why: rules
                .iter()
                .map(|rule| plan.complaint(*rule))
                .collect::<Vec<_>>()
                .join("; "),
            rules,
        }),
    })
}

fn offer(message: &Message) -> Option<Offer> {
    matches!(message.act, Act::Request | Act::Propose)
        .then(|| read(message))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use agora_guest::MessageId;
    use release_plan::Rule;

    fn message(act: Act, payload: &str) -> Message {
        Message {
            ordinal: 1,
            id: MessageId([1; 32]),
            parent: None,
            thread: MessageId([1; 32]),
            author: "planner@00000000".into(),
            act,
            hops: 6,
            content_type: String::new(),
            payload: payload.into(),
            time_ms: 0,
            epoch: 1,
            owner: None,
            deadline_ms: None,
            mine: false,
        }
    }

    const BAD: &str = r#"{"plan":{"draft":1,"changes":["a","b","c","d"],"rollback":null}}"#;
    const GOOD: &str = r#"{"plan":{"draft":2,"changes":["a"],"rollback":"redeploy"}}"#;

    #[test]
    fn a_refusal_names_every_rule_that_is_broken() {
        let Some(Review::Refuse(objection)) = review(&message(Act::Request, BAD)) else {
            panic!("it must refuse");
        };
        assert_eq!(objection.rules, [Rule::R1, Rule::R2]);
        assert!(objection.why.contains("R1") && objection.why.contains("R2"));
    }

    #[test]
    fn a_plan_that_keeps_the_rules_is_agreed_to() {
        let Some(Review::Agree(agreement)) = review(&message(Act::Propose, GOOD)) else {
            panic!("it must agree");
        };
        assert_eq!(agreement.draft, 2);
    }

    #[test]
    fn what_is_no_proposal_is_passed_and_what_can_t_be_read_is_refused() {
        assert_eq!(review(&message(Act::Inform, GOOD)), None);
        assert_eq!(review(&message(Act::Decide, GOOD)), None);
        assert_eq!(
            review(&message(Act::Request, "what shall we release?")),
            None
        );
        let vague = review(&message(Act::Propose, "let's release it all"));
        assert!(matches!(vague, Some(Review::Refuse(o)) if o.rules.is_empty()));
    }
}
