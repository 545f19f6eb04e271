//! Random sequences of steps, on one vat thread and on several.
//!
//! `PROPTEST_CASES` says how many, `PROPTEST_RNG_SEED` which; the seed is printed. A failing sequence is made as short as it can be, and
//! printed as steps that [`replay`] takes: put it among the tests below.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};

use crate::host::{ACTS, AGENTS, Bed, CHANNELS};
use crate::model::{ATTENUATE, FacetNo, INITIATE, Model, READ, Step, Terms, WRITE};

/// Which facet: one that is alive, or any that was ever handed out.
#[derive(Debug, Clone, Copy)]
struct Pick {
    at: Index,
    any: bool,
}

impl Pick {
    fn of(self, model: &Model) -> Option<FacetNo> {
        let all = 0..model.facets.len();
        let fit: Vec<_> = all
            .filter(|no| self.any || !model.facets[*no].dead)
            .collect();
        (!fit.is_empty()).then(|| *self.at.get(&fit))
    }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Graft(usize),
    Attenuate(Pick, Terms, bool),
    Lend(Pick, usize),
    Fetch(Pick, usize),
    Cut(Pick),
    Say(Pick, u8),
    SayAll,
    Grant(usize, usize, Terms),
    Revoke(Index),
    Kill(usize),
    Start(usize),
    End(usize),
    Bump,
    /// Whoever can grafts.
    Arrive,
}

impl Op {
    /// What it is here and now; nothing when there is nothing to do it to.
    fn steps(self, bed: &Bed) -> Vec<Step> {
        let model = &bed.model;
        let facet = |pick: Pick, step: &dyn Fn(FacetNo) -> Step| {
            pick.of(model).map(step).into_iter().collect()
        };
        match self {
            Op::Graft(agent) => vec![Step::Graft(agent)],
            Op::Attenuate(pick, terms, lasting) => facet(pick, &|facet| Step::Attenuate {
                facet,
                terms,
                lasting,
            }),
            Op::Lend(pick, to) => facet(pick, &|facet| Step::Lend { facet, to }),
            Op::Fetch(pick, by) => facet(pick, &|facet| Step::Fetch { facet, by }),
            Op::Cut(pick) => {
                let all = 0..model.facets.len();
                let made = |no: &FacetNo| {
                    let facet = &model.facets[*no];
                    facet.made && (pick.any || !facet.dead)
                };
                let made: Vec<_> = all.filter(made).collect();
                match made.is_empty() {
                    true => Vec::new(),
                    false => vec![Step::Cut(*pick.at.get(&made))],
                }
            }
            Op::Say(pick, act) => facet(pick, &|facet| Step::Say { facet, act }),
            Op::SayAll => Vec::new(),
            Op::Grant(to, channel, terms) => vec![Step::Grant { to, channel, terms }],
            Op::Revoke(at) => {
                let known = bed.on_the_books();
                match known.is_empty() {
                    true => Vec::new(),
                    false => vec![Step::Revoke(*at.get(&known))],
                }
            }
            Op::Kill(agent) => vec![Step::Kill(agent)],
            Op::Start(agent) => vec![Step::Start(agent)],
            Op::End(agent) => vec![Step::End(agent)],
            Op::Bump => vec![Step::Bump],
            Op::Arrive => {
                let all = 0..AGENTS.len();
                let idle = all.filter(|no| model.agents[*no].graft.is_none());
                idle.flat_map(|no| [Step::Start(no), Step::Graft(no)])
                    .collect()
            }
        }
    }
}

fn terms() -> impl Strategy<Value = Terms> {
    let all = READ | WRITE | INITIATE | ATTENUATE;
    let rights = prop_oneof![4 => Just(all), 1 => 0..=all];
    let acts = prop_oneof![4 => Just(0x3fu8), 1 => prop::sample::select(vec![0u8, 1, 4, 5])];
    let count = prop_oneof![3 => Just(u64::MAX), 2 => 0..5u64];
    (rights, acts, count).prop_map(|(rights, acts, count)| Terms {
        rights,
        acts,
        count,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let agent = || 0..AGENTS.len();
    let stale = prop_oneof![6 => Just(false), 1 => Just(true)];
    let pick = (any::<Index>(), stale).prop_map(|(at, any)| Pick { at, any });
    let pick = || pick.clone();
    let act = prop::sample::select(ACTS.to_vec());
    prop_oneof![
        5 => Just(Op::Arrive),
        2 => agent().prop_map(Op::Graft),
        6 => (pick(), terms(), prop::bool::weighted(0.4))
            .prop_map(|(pick, terms, lasting)| Op::Attenuate(pick, terms, lasting)),
        9 => (pick(), agent()).prop_map(|(pick, to)| Op::Lend(pick, to)),
        6 => (pick(), agent()).prop_map(|(pick, by)| Op::Fetch(pick, by)),
        2 => pick().prop_map(Op::Cut),
        3 => (pick(), act).prop_map(|(pick, act)| Op::Say(pick, act)),
        1 => Just(Op::SayAll),
        2 => (agent(), 0..CHANNELS.len(), terms())
            .prop_map(|(to, channel, terms)| Op::Grant(to, channel, terms)),
        2 => any::<Index>().prop_map(Op::Revoke),
        2 => agent().prop_map(Op::Kill),
        1 => agent().prop_map(Op::Start),
        1 => agent().prop_map(Op::End),
        1 => Just(Op::Bump),
    ]
}

/// Ann is granted one channel, bob a little of the other, and all have grafted.
const BEGINNING: [Step; 5] = [
    Step::Grant {
        to: 0,
        channel: 0,
        terms: Terms::ALL,
    },
    Step::Grant {
        to: 1,
        channel: 1,
        terms: Terms {
            count: 6,
            ..Terms::ALL
        },
    },
    Step::Graft(0),
    Step::Graft(1),
    Step::Graft(2),
];

async fn run(workers: usize, ops: &[Op]) {
    let mut bed = Bed::open(workers).await;
    for step in BEGINNING {
        bed.step(step).await;
    }
    for op in ops {
        for step in op.steps(&bed) {
            bed.step(step).await;
        }
        if matches!(op, Op::SayAll) {
            bed.say_all().await;
        }
    }
    bed.say_all().await;
    bed.look().await;
    bed.compare_record().await;
    bed.close().await;
}

/// Takes these steps, and says something through everything at the end.
async fn replay(workers: usize, steps: &[Step]) {
    let mut bed = Bed::open(workers).await;
    for step in steps {
        bed.step(*step).await;
    }
    bed.say_all().await;
    bed.look().await;
    bed.compare_record().await;
    bed.close().await;
}

/// A bounded sample, or as many as `PROPTEST_CASES` asks for.
fn cases(sample: u32) -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked.and_then(|cases| cases.parse().ok()).unwrap_or(sample)
}

fn random(workers: usize, sample: u32) {
    let mut config = Config {
        cases: cases(sample),
        failure_persistence: None,
        max_shrink_iters: 400,
        max_shrink_time: 30_000,
        ..Config::default()
    };
    let seed = crate::seed();
    config.rng_seed = RngSeed::Fixed(seed);
    println!("PROPTEST_RNG_SEED={seed}, {} cases", config.cases);
    let runtime = crate::runtime();
    let mut runner = TestRunner::new(config);
    let ran = runner.run(&vec(op(), 1..44), |ops| {
        runtime.block_on(run(workers, &ops));
        Ok(())
    });
    match ran {
        Ok(()) => {}
        Err(TestError::Fail(why, _)) => panic!("PROPTEST_RNG_SEED={seed}: {why}"),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

#[test]
fn on_one_thread_the_host_allows_what_the_model_allows() {
    random(1, 16);
}

#[test]
fn over_bridges_the_host_allows_what_the_model_allows() {
    random(3, 16);
}

#[test]
fn on_two_threads_the_host_allows_what_the_model_allows() {
    random(2, 8);
}

/// Replays what follows the beginning, on one thread and over bridges.
async fn replay_after_the_beginning(steps: &[Step]) {
    for workers in [1, 3] {
        replay(workers, &[&BEGINNING, steps].concat()).await;
    }
}

/// What ann lent bob in passing died with her life; and so did what bob narrowed from it, however he meant to lend that.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_in_passing_is_not_lent_on_for_good() {
    let lasting = Step::Attenuate {
        facet: 2,
        terms: Terms::ALL,
        lasting: true,
    };
    let lends = [
        Step::Lend { facet: 0, to: 1 },
        lasting,
        Step::Lend { facet: 3, to: 2 },
    ];
    for ends in [Step::End(0), Step::Graft(0)] {
        replay_after_the_beginning(&[&lends[..], &[ends, Step::Graft(2)]].concat()).await;
    }
}

/// What bob borrowed and lent on goes with his own graft and life, and not only with ann's.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_lent_on_dies_with_whoever_lent_it_on() {
    let lends = [
        Step::Lend { facet: 0, to: 1 },
        Step::Lend { facet: 2, to: 2 },
        Step::Fetch { facet: 2, by: 0 },
    ];
    let granted = Step::Grant {
        to: 1,
        channel: 0,
        terms: Terms::ALL,
    };
    for ends in [Step::Graft(1), Step::End(1), Step::Revoke(1), granted] {
        replay_after_the_beginning(&[&lends[..], &[ends]].concat()).await;
    }
}

/// What was lent before and is over is lent anew: by a server that grafted anew, under the same grant; and after the operator took the
/// loan back, under another.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_lent_again_is_alive() {
    let fetch = |facet| Step::Fetch { facet, by: 2 };
    replay_after_the_beginning(&[fetch(1), Step::Graft(1), fetch(3)]).await;
    replay_after_the_beginning(&[fetch(1), Step::Revoke(2), fetch(1)]).await;
}
