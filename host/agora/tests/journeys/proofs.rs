//! A proof of an entry of a log that is on servers: from a data folder of the realm, and where there is none.

use super::harness::{Journey, json_lines, text};
use super::nats::{Server, program};

const SQUARE: &str = "[channels.square]\nhops = 3\n";

#[test]
fn an_entry_of_a_log_on_servers_is_proved_from_there() {
    let Some(program) = program() else {
        return;
    };
    let server = Server::start(&program);
    let url = server.url();
    let journey = Journey::new(SQUARE);
    // What stands in its folder is no record.
    journey.forges();
    let host = journey.start(&["--log", &url]);
    let id = journey.say("square", "one");
    journey
        .cli(&["epoch", "bump", "--reason", "a test"])
        .exits(0);
    journey.say("square", "two");
    host.stop();
    let (proof, held) = (
        journey.folder().join("proof.json"),
        journey.folder().join("held"),
    );
    let (proof, held) = (
        proof.to_str().expect("a path of our own"),
        held.to_str().expect("a path of our own"),
    );
    let realm = std::fs::read_to_string(journey.data().join("realm")).expect("it is pinned");
    let realm = realm.trim();
    // The folder alone has no log, and the realm is known by the folder.
    let refused = journey.cli(&["prove", &id, "-o", proof]).exits(1);
    assert!(refused.stderr.contains("--log"), "{refused:?}");
    journey
        .cli(&["prove", &id, "--log", &url, "-o", proof])
        .exits(0);
    let verify = ["verify", proof, "--realm", realm, "--json"];
    let shows = || {
        let told = journey.agora_in(journey.folder(), &verify).exits(0).stdout;
        let told = json_lines(&told).remove(0);
        assert_eq!(text(&told["messages"][0], "id"), id);
        assert_eq!(text(&told["messages"][0], "body"), "one");
        assert_eq!((&told["holds"], &told["epoch"]), (&true.into(), &1.into()));
    };
    shows();

    // Where no folder of the realm is: the realm's id, and a checkpoint that somebody holds.
    let checkpoint = journey.cli(&["checkpoint"]).exits(0).stdout;
    std::fs::write(held, checkpoint).expect("the folder is ours");
    std::fs::remove_file(proof).expect("it was written");
    let elsewhere = |more: &[&str]| {
        let args = ["prove", &id, "--log", &url, "-o", proof, "--data", "none"];
        journey.agora_in(journey.folder(), &[&args, more].concat())
    };
    let refused = elsewhere(&["--realm", realm]).exits(1);
    assert!(refused.stderr.contains("--checkpoint"), "{refused:?}");
    let refused = elsewhere(&["--checkpoint", held]).exits(1);
    assert!(refused.stderr.contains("--realm"), "{refused:?}");
    elsewhere(&["--realm", realm, "--checkpoint", held]).exits(0);
    shows();
    // In the log that the checkpoint is of: of one that isn't this, there is no proof.
    let kept = std::fs::read_to_string(held).expect("it was written");
    let mut lines: Vec<_> = kept.lines().map(str::to_owned).collect();
    let root = &mut lines[2];
    let other = if root.starts_with('A') { "B" } else { "A" };
    root.replace_range(..1, other);
    std::fs::write(held, lines.join("\n") + "\n").expect("the folder is ours");
    let refused = elsewhere(&["--realm", realm, "--checkpoint", held]).exits(1);
    assert!(refused.stderr.contains("not that of"), "{refused:?}");
    assert!(!journey.folder().join("none").exists());
}
