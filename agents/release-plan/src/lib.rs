//! What the agents on channel `release`, here or at another host, say to each other, and the rules that a plan must keep.
//!
//! In: payloads, which anybody on the channel may have written. Out: plans and what is said about them, or `None` for what
//! is none of this.
//! Promise: each payload is one line of JSON, short enough to be read as it goes by.
//!
//! The rules:
//! - **R1**: a plan has at most [`CHANGES_MAX`] changes.
//! - **R2**: a plan names its rollback step.

use agora_guest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The channel; another host's is called by the host's name before it, as `bravo/release`.
pub const CHANNEL: &str = "release";
/// The media type of every payload.
pub const MEDIA_TYPE: &str = "application/json";
/// Rule R1: the most changes that one plan may have.
pub const CHANGES_MAX: usize = 3;
/// How far back an agent reads on arrival, in messages.
const RECENT_MAX: u64 = 4096;

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    /// At most [`CHANGES_MAX`] changes.
    R1,
    /// A rollback step is named.
    R2,
}

/// What would be released, and how it is taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Counts the drafts of a negotiation, from 1.
    pub draft: u32,
    /// What changes.
    pub changes: Vec<String>,
    /// What is done when it goes wrong.
    pub rollback: Option<String>,
}

impl Plan {
    /// The rules it breaks.
    pub fn broken(&self) -> Vec<Rule> {
        let kept = |rule: &Rule| match rule {
            Rule::R1 => self.changes.len() <= CHANGES_MAX,
            Rule::R2 => self.rollback.as_ref().is_some_and(|step| !step.is_empty()),
        };
        [Rule::R1, Rule::R2]
            .into_iter()
            .filter(|rule| !kept(rule))
            .collect()
    }

    /// Why it breaks this rule, for people.
    pub fn complaint(&self, rule: Rule) -> String {
        match rule {
            Rule::R1 => format!(
                "R1: at most {CHANGES_MAX} changes, and it has {}",
                self.changes.len()
            ),
            Rule::R2 => "R2: it names no rollback step".into(),
        }
    }
}

/// The payload of a `request` or a `propose`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The question, when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<String>,
    /// What is offered.
    pub plan: Plan,
}

/// The payload of a `refuse`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objection {
    /// The rules that the plan breaks.
    pub rules: Vec<Rule>,
    /// The same for people.
    pub why: String,
}

/// The payload of an `agree`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// Which draft.
    pub draft: u32,
    /// What was checked.
    pub why: String,
}

/// The payload of a `decide`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether anything is released.
    pub release: bool,
    /// What is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// On what ground.
    pub why: String,
}

/// A draft with this payload.
pub fn draft(act: Act, said: &impl Serialize) -> Draft {
    let payload =
        serde_json::to_vec(said).expect("plain structs of text and numbers have a JSON form");
    Draft::new(act, payload).content_type(MEDIA_TYPE)
}

/// What a payload says, when it says such a thing.
pub fn read<T: DeserializeOwned>(message: &Message) -> Option<T> {
    serde_json::from_slice(&message.payload).ok()
}

/// The channel, wherever it was granted: here, or at a peer.
///
/// # Errors
/// Denied when it was not granted; names what was.
pub fn channel(graft: &Graft) -> Result<Channel, Error> {
    let named = |name: &&str| name.rsplit('/').next() == Some(CHANNEL);
    let name = graft.names().find(named).unwrap_or(CHANNEL);
    graft.channel(name)
}

/// The last few thousand messages, the agent's own among them: what it must know again after a restart.
///
/// # Errors
/// Stale; denied without the read right.
pub async fn recent(channel: &Channel) -> Result<Vec<Message>, Error> {
    let mut from = channel.info().await?.latest.saturating_sub(RECENT_MAX) + 1;
    let mut messages = Vec::new();
    loop {
        let (page, next) = channel.history(from, u32::MAX).await?;
        messages.extend(page);
        if next <= from {
            return Ok(messages);
        }
        from = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(changes: usize, rollback: Option<&str>) -> Plan {
        Plan {
            draft: 1,
            changes: (0..changes).map(|i| format!("change {i}")).collect(),
            rollback: rollback.map(str::to_owned),
        }
    }

    #[test]
    fn a_plan_is_held_to_each_rule() {
        assert_eq!(plan(3, Some("redeploy")).broken(), []);
        assert_eq!(plan(4, Some("redeploy")).broken(), [Rule::R1]);
        assert_eq!(plan(0, None).broken(), [Rule::R2]);
        assert_eq!(plan(4, Some("")).broken(), [Rule::R1, Rule::R2]);
    }

    #[test]
    fn an_offer_is_one_line() {
        let offer = Offer {
            ask: None,
            plan: plan(1, None),
        };
        let line = serde_json::to_string(&offer).expect("it has a JSON form");
        assert_eq!(
            line,
            r#"{"plan":{"draft":1,"changes":["change 0"],"rollback":null}}"#
        );
        assert_eq!(serde_json::from_str::<Offer>(&line).ok(), Some(offer));
    }
}
