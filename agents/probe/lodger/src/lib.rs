//! Makes narrower facets of its channel, uses them, takes them back, and reports whether each behaved.
//!
//! In: one channel with the rights to read, write, initiate and attenuate. Out: two short messages through a facet that
//! allows two, then one report, as `lodger: read-only=ok counted=ok ...`; then it is done.
//! Tries: to speak through a facet for reading; to widen a facet by attenuating it again; to speak past its count; to use
//! a facet, and one made from it, after it was cut.
//! What must stop it: the terms of the facet, the count on the record, and the facet's own wall.

use agora_guest::prelude::*;

#[agora_guest::main]
async fn lodger(graft: Graft) -> Result<(), Error> {
    let Some(channel) = graft.channels().next() else {
        return Err(Error::failed("lodger: no channel was granted"));
    };
    let findings = [
        ("read-only", read_only(&channel).await?),
        ("counted", counted(&channel).await?),
        ("narrower", never_wider(&channel).await?),
        ("revoked", cut(&channel).await?),
        ("own", channel.info().await.is_ok()),
    ];
    let report = report(&findings);
    agora_guest::info!("{report}");
    if let Err(refused) = channel.say(Draft::inform(report)).await? {
        agora_guest::warn!("lodger: the report was refused: {refused}");
    }
    Ok(())
}

fn report(findings: &[(&str, bool)]) -> String {
    let words = findings.iter().map(|(what, behaved)| match behaved {
        true => format!(" {what}=ok"),
        false => format!(" {what}=BAD"),
    });
    format!("lodger:{}", words.collect::<String>())
}

fn reading() -> Terms {
    Terms {
        count: 1,
        ..Terms::read_only()
    }
}

/// A facet for reading reads, and does not speak; what is made of it may do no more.
async fn read_only(channel: &Channel) -> Result<bool, Error> {
    let (facet, revoker) = channel.attenuate(&reading()).await?;
    let reads = facet.history(1, 1).await.is_ok();
    let terms = facet.info().await?.terms;
    let speaks = has_spoken(facet.say(Draft::inform("lodger: must not count")).await);
    let (below, _) = facet.attenuate(&Terms::all()).await?;
    let hands_on = below.info().await?.terms != terms;
    revoker.revoke("tried").await?;
    Ok(reads && terms.read && !terms.write && !speaks && !hands_on)
}

/// A facet for two messages lets two count.
async fn counted(channel: &Channel) -> Result<bool, Error> {
    let terms = Terms {
        count: 2,
        ..Terms::all()
    };
    let (facet, revoker) = channel.attenuate(&terms).await?;
    let mut counted = 0;
    for n in 1..=3 {
        let said = facet.say(Draft::inform(format!("lodger: {n} of 2"))).await;
        counted += u32::from(has_spoken(said));
    }
    revoker.revoke("tried").await?;
    Ok(counted == 2)
}

/// What a facet made from another asks for beyond it is not granted.
async fn never_wider(channel: &Channel) -> Result<bool, Error> {
    let narrow = Terms {
        acts: Some(vec![Act::Agree]),
        bytes_max: 16,
        hops: 1,
        ..Terms::all()
    };
    let (facet, revoker) = channel.attenuate(&narrow).await?;
    let (wider, _) = facet.attenuate(&Terms::all()).await?;
    let terms = wider.info().await?.terms;
    let speaks = has_spoken(wider.say(Draft::inform("lodger: no")).await);
    revoker.revoke("tried").await?;
    let kept = (terms.acts, terms.bytes_max, terms.hops) == (narrow.acts, 16, 1);
    Ok(kept && !speaks)
}

/// A facet that was cut fails, and so does what was made from it; cutting it again does no harm.
async fn cut(channel: &Channel) -> Result<bool, Error> {
    let (facet, revoker) = channel.attenuate(&Terms::all()).await?;
    let (child, _) = facet.attenuate(&Terms::all()).await?;
    let before = facet.info().await.is_ok() && child.info().await.is_ok();
    revoker.revoke("moving out").await?;
    let stale = |result: Result<agora_guest::channel::Info, Error>| {
        result.is_err_and(|error| error.is_stale())
    };
    let after = stale(facet.info().await) && stale(child.info().await);
    let speaks = has_spoken(facet.say(Draft::inform("lodger: must not count")).await);
    let again = revoker.revoke("once more").await.is_ok();
    Ok(before && after && !speaks && again)
}

fn has_spoken(said: Result<Result<Receipt, Refused>, Error>) -> bool {
    matches!(said, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_one_line_that_names_what_misbehaved() {
        assert_eq!(
            report(&[("own", true), ("cut", false)]),
            "lodger: own=ok cut=BAD"
        );
    }

    #[test]
    fn the_facet_for_reading_asks_for_nothing_else() {
        let terms = reading();
        assert!(terms.read && !terms.write && !terms.initiate && !terms.attenuate);
        assert_eq!(terms.count, 1);
    }
}
