//! Terms are a lattice.

use agora_capnp::terms_capnp;
use agora_realm::{ActSet, Body, GrantId, Rate, Refusal, Rights, Terms};
use proptest::prelude::*;

use crate::support::World;

fn rate() -> impl Strategy<Value = Option<Rate>> {
    prop_oneof![
        (0..20u32, 0..20u32).prop_map(|(messages, per_ms)| Rate::new(messages, per_ms)),
        any::<(u32, u32)>().prop_map(|(messages, per_ms)| Rate::new(messages, per_ms)),
    ]
}

pub(crate) fn terms() -> impl Strategy<Value = Terms> {
    let numbers = (
        any::<u16>(),
        any::<u32>(),
        0..9u64,
        any::<i64>(),
        any::<u64>(),
    );
    (any::<u16>(), any::<u16>(), numbers, rate()).prop_map(
        |(rights, acts, (hops, bytes_max, count, until_ms, history), rate)| Terms {
            rights: Rights(rights),
            acts: ActSet(acts),
            hops,
            bytes_max,
            count,
            rate,
            until_ms,
            history,
        },
    )
}

fn through_the_schema(terms: &Terms) -> Terms {
    let mut message = capnp::message::Builder::new_default();
    terms.write(message.init_root::<terms_capnp::terms::Builder<'_>>());
    Terms::read(message.get_root_as_reader().unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn meet_is_a_lattices((a, b, c) in (terms(), terms(), terms())) {
        let ab = a.meet(&b);
        prop_assert_eq!(ab, b.meet(&a));
        prop_assert_eq!(ab.meet(&c), a.meet(&b.meet(&c)));
        prop_assert_eq!(a.meet(&a), a);
        prop_assert_eq!(a.meet(&Terms::ALL), a);
        prop_assert!(ab.narrows(&a) && ab.narrows(&b) && a.narrows(&Terms::ALL));
        // It is the greatest: whatever narrows both narrows it.
        if c.narrows(&a) && c.narrows(&b) {
            prop_assert!(c.narrows(&ab));
        }
        prop_assert_eq!(a.narrows(&b) && b.narrows(&a), a == b);
    }

    #[test]
    fn a_meet_is_never_faster_than_either((a, b) in (rate(), rate())) {
        if let (Some(a), Some(b)) = (a, b) {
            let met = a.meet(&b);
            for of in [a, b] {
                prop_assert!(met.messages() <= of.messages() && met.gap() >= of.gap());
            }
            prop_assert!(met.gap() == a.gap() || met.gap() == b.gap());
        }
    }

    /// Through judge, with holders that change along the way: what a grant allows only narrows, whatever is asked for.
    #[test]
    fn a_chain_of_grants_only_narrows(
        chain in proptest::collection::vec((terms(), 0..3usize, any::<bool>()), 1..16)
    ) {
        let mut w = World::new();
        let personas = ["a", "b", "c"].map(|name| w.persona(name));
        let mut above: Vec<GrantId> = Vec::new();
        for (mut asked, to, lasting) in chain {
            if to > 0 {
                // Else few chains would be long.
                asked.rights = asked.rights | Rights::ATTENUATE;
            }
            let mut entry = w.grant_entry(&personas[to], "c", asked, above.last().copied());
            let Body::Grant(body) = &mut entry.body else {
                unreachable!()
            };
            body.lasting = lasting;
            let judged = w.put(entry);
            if judged.verdict.is_err() {
                // Its lender may not pass it on.
                prop_assert_eq!(judged.verdict, Err(Refusal::NoRight));
                continue;
            }
            let id = GrantId::from(judged.id.unwrap());
            let allowed = w.state.grant(&id).unwrap().effective;
            prop_assert!(allowed.narrows(&asked));
            for id in &above {
                prop_assert!(allowed.narrows(&w.state.grant(id).unwrap().effective));
            }
            above.push(id);
        }
    }

    #[test]
    fn terms_read_back_from_the_schema(a in terms()) {
        prop_assert_eq!(through_the_schema(&a), a);
    }
}

#[test]
fn untouched_terms_of_the_schema_allow_everything() {
    let mut message = capnp::message::Builder::new_default();
    message.init_root::<terms_capnp::terms::Builder<'_>>();
    let read = Terms::read(message.get_root_as_reader().unwrap()).unwrap();
    assert_eq!(read, Terms::ALL);
    assert_eq!(through_the_schema(&Terms::ALL), Terms::ALL);
}

#[test]
fn the_slower_rate_wins_whatever_its_span() {
    let per_second = Rate::new(20, 1000).unwrap();
    let per_minute = Rate::new(1000, 60_000).unwrap();
    let met = per_second.meet(&per_minute);
    assert_eq!((met.messages(), met.per_ms()), (20, 1200));
    assert_eq!(Rate::new(0, 5), None);
    assert_eq!(Rate::new(5, 0), None);
}
