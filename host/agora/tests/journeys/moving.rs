//! A log is kept in a file, moved to another folder and to servers, and read where it is.

use std::path::Path;

use super::harness::{Journey, json_lines, messages, text};
use super::nats::{Server, program};

const SQUARE: &str = "[channels.square]\nhops = 3\n[channels.attic]\n";

/// What was said, in order.
fn said(journey: &Journey, more: &[&str]) -> Vec<String> {
    let mut args = vec!["log", "--json"];
    args.extend(more);
    let lines = json_lines(&journey.cli(&args).exits(0).stdout);
    let bodies = messages(&lines);
    bodies.iter().map(|m| text(m, "body").to_owned()).collect()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path of our own")
}

/// A host that said this, and what it exported while it ran.
fn exported(journey: &Journey, texts: &[&str], name: &str) -> std::path::PathBuf {
    let host = journey.start(&[]);
    for text in texts {
        journey.say("square", text);
    }
    let file = journey.folder().join(name);
    let told = journey.cli(&["log", "--export", path(&file)]).exits(0);
    assert!(
        told.stdout.is_empty() && told.stderr.contains("entries of realm"),
        "{told:?}"
    );
    host.stop();
    file
}

#[test]
fn a_log_is_exported_while_its_host_runs_and_goes_on_in_another_folder() {
    let journey = Journey::new(SQUARE);
    let file = exported(&journey, &["one", "two"], "first.agora");
    let other = journey.another(SQUARE);
    let told = other.cli(&["import", path(&file)]).exits(0);
    assert!(told.stdout.contains("secret"), "{told:?}");
    assert_eq!(said(&other, &[]), ["one", "two"]);
    let whole = |journey: &Journey| journey.cli(&["log", "--json"]).exits(0).stdout;
    assert_eq!(whole(&other), whole(&journey));

    // Without the secret nobody goes on; with it, its host does.
    let (status, _, refused) = other.spawn(&[]).until_exit();
    assert!(!status.success() && refused.contains("secret"), "{refused}");
    std::fs::copy(journey.data().join("secret"), other.data().join("secret"))
        .expect("both are ours");
    let host = other.start(&[]);
    other.say("square", "three");
    host.stop();
    assert_eq!(said(&other, &[]), ["one", "two", "three"]);
    assert_eq!(said(&other, &["--from", "1"]).len(), 3);

    // It is no empty log now.
    let refused = other.cli(&["import", path(&file)]).exits(1);
    assert!(refused.stderr.contains("empty"), "{refused:?}");
    // And this folder is another realm's.
    let stranger = journey.another(SQUARE);
    stranger.start(&[]).stop();
    let refused = stranger.cli(&["import", path(&file)]).exits(1);
    assert!(refused.stderr.contains("belongs to realm"), "{refused:?}");
}

#[test]
fn a_file_that_is_cut_or_changed_is_refused_before_anything_is_made_of_it() {
    let journey = Journey::new(SQUARE);
    let file = exported(&journey, &["one", "two"], "first.agora");
    let whole = std::fs::read(&file).expect("it was written");
    let other = journey.another(SQUARE);
    let broken = journey.folder().join("broken.agora");
    let mut changed = whole.clone();
    let middle = whole.len() / 2;
    changed[middle] ^= 1;
    for bytes in [&whole[..whole.len() - 1], &whole[..middle], &changed[..]] {
        std::fs::write(&broken, bytes).expect("the folder is ours");
        let refused = other.cli(&["import", path(&broken)]).exits(1);
        assert!(refused.stderr.contains("export"), "{refused:?}");
        assert!(!other.data().exists());
    }
    std::fs::write(&broken, b"what is this").expect("the folder is ours");
    other.cli(&["import", path(&broken)]).exits(1);
    // To standard output goes the same.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_agora"));
    command
        .args(["log", "--export", "-", "--data"])
        .arg(journey.data());
    let output = command.output().expect("agora runs");
    assert!(output.status.success());
    // A clean end may have added an entry; up to there it is the same.
    assert_eq!(output.stdout[..middle], whole[..middle]);
}

#[test]
fn an_interrupted_import_goes_on_where_it_stopped_and_no_host_runs_before() {
    let journey = Journey::new(SQUARE);
    let early = exported(&journey, &["one", "two"], "early.agora");
    let late = exported(&journey, &["three", "four"], "late.agora");
    let other = journey.another(SQUARE);
    other.cli(&["import", path(&early)]).exits(0);
    std::fs::copy(journey.data().join("secret"), other.data().join("secret"))
        .expect("both are ours");
    // As an import of the later one leaves it when it is killed half way.
    let realm = std::fs::read_to_string(other.data().join("realm")).expect("it is pinned");
    let marker = other.data().join("importing");
    let begun = format!("{} {}\n", realm.trim(), other.data().join("log").display());
    std::fs::write(&marker, &begun).expect("the folder is ours");
    let (status, _, refused) = other.spawn(&[]).until_exit();
    assert!(!status.success() && refused.contains("import"), "{refused}");
    let stdout = other.cli(&["import", path(&late)]).exits(0).stdout;
    assert!(stdout.contains("entries of realm"), "{stdout}");
    assert_eq!(said(&other, &[]), ["one", "two", "three", "four"]);
    assert!(!marker.exists());

    // What is there is compared: this one went on otherwise.
    let third = journey.another(SQUARE);
    third.cli(&["import", path(&early)]).exits(0);
    std::fs::copy(journey.data().join("secret"), third.data().join("secret"))
        .expect("both are ours");
    let host = third.start(&[]);
    third.say("square", "something else");
    host.stop();
    let begun = format!("{} {}\n", realm.trim(), third.data().join("log").display());
    std::fs::write(third.data().join("importing"), begun).expect("the folder is ours");
    let refused = third.cli(&["import", path(&late)]).exits(1);
    assert!(refused.stderr.contains("another one"), "{refused:?}");
}

#[test]
fn a_log_moves_to_servers_and_back_and_is_read_there() {
    let Some(program) = program() else {
        return;
    };
    let server = Server::start(&program);
    let url = server.url();
    let journey = Journey::new(SQUARE);
    let file = exported(&journey, &["one", "two"], "first.agora");
    // Reading makes nothing.
    let refused = journey.cli(&["log", "--log", &url]).exits(1);
    assert!(refused.stderr.contains("stream"), "{refused:?}");
    journey
        .cli(&["import", path(&file), "--log", &url])
        .exits(0);
    assert_eq!(said(&journey, &["--log", &url]), ["one", "two"]);
    // The folder's own is no longer gone on with by mistake.
    let (status, _, refused) = journey.spawn(&[]).until_exit();
    assert!(!status.success() && refused.contains("--log"), "{refused}");
    assert!(journey.data().join("log.moved-1").exists());

    let host = journey.start(&["--log", &url]);
    journey.say("square", "three");
    assert_eq!(said(&journey, &["--log", &url]), ["one", "two", "three"]);
    let well = journey.cli(&["doctor", "--log", &url]);
    assert!(well.stdout.contains("the log reads whole"), "{well:?}");
    assert!(well.stdout.contains("`acknowledged`"), "{well:?}");
    let asserted = journey
        .cli(&["doctor", "--log", &url, "--log-synced"])
        .stdout;
    assert!(asserted.contains("`asserted`"), "{asserted}");
    let back = journey.folder().join("back.agora");
    journey
        .cli(&["log", "--export", path(&back), "--log", &url])
        .exits(0);
    host.stop();
    journey.cli(&["verify", "--log", &url]).exits(0);
    journey.cli(&["verify", path(&back)]).exits(0);
    // Its own log was begun anew and left empty; the realm's is on the servers.
    journey.forges();
    let refused = journey
        .cli(&["import", path(&back), "--log", &url])
        .exits(1);
    assert!(refused.stderr.contains("empty"), "{refused:?}");

    let home = journey.another(SQUARE);
    home.cli(&["import", path(&back)]).exits(0);
    assert_eq!(said(&home, &[]), ["one", "two", "three"]);
    let well = home.cli(&["doctor"]).stdout;
    assert!(well.contains("`fsync`"), "{well}");
}

#[test]
fn a_channel_is_pruned_by_command_and_moves_with_what_is_left_of_it() {
    let journey = Journey::new(SQUARE);
    let host = journey.start(&[]);
    for text in ["one", "two", "three"] {
        journey.say("square", text);
    }
    let would = journey
        .cli(&["prune", "square", "--keep-count", "1", "--dry-run"])
        .exits(0);
    assert!(would.stdout.contains("would prune 2 messages"), "{would:?}");
    journey.cli(&["prune", "square"]).exits(2);
    let unknown = journey
        .cli(&["prune", "sqare", "--keep-count", "1"])
        .exits(1);
    assert!(unknown.stderr.contains("square"), "{unknown:?}");
    let done = journey
        .cli(&["prune", "square", "--keep-count", "1"])
        .exits(0);
    assert!(done.stdout.contains("pruned 2 messages"), "{done:?}");
    let left = said(&journey, &[]);
    assert_eq!(left.len(), 3);
    assert!(left[0].contains("pruned") && left[2] == "three", "{left:?}");
    let file = journey.folder().join("pruned.agora");
    journey.cli(&["log", "--export", path(&file)]).exits(0);
    let nothing = journey
        .cli(&["prune", "square", "--older-than", "30d"])
        .exits(0);
    assert!(nothing.stdout.contains("nothing"), "{nothing:?}");
    host.stop();
    let well = journey.cli(&["doctor"]).exits(0).stdout;
    assert!(
        well.contains("reads whole") && well.contains("2 of them were pruned"),
        "{well}"
    );

    let other = journey.another(SQUARE);
    other.cli(&["import", path(&file)]).exits(0);
    assert_eq!(said(&other, &[]), left);
    std::fs::copy(journey.data().join("secret"), other.data().join("secret"))
        .expect("both are ours");
    let host = other.start(&[]);
    other.say("square", "four");
    other
        .cli(&["prune", "square", "--keep-bytes", "4"])
        .exits(0);
    host.stop();
    let left = said(&other, &[]);
    assert!(left[2].contains("pruned") && left[3] == "four", "{left:?}");
    let verified = other.cli(&["verify"]).exits(0).stdout;
    assert!(verified.contains("pruned"), "{verified}");
    // What is kept of pruned turns is missed, also of those that came by the import.
    other.forges();
    std::fs::remove_file(other.data().join("pruned")).expect("the folder is ours");
    let missed = other.cli(&["log"]).exits(1);
    assert!(missed.stderr.contains("pruned"), "{missed:?}");
}
