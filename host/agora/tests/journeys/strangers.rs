//! Mistakes are told where they are made, and start nothing.

use super::harness::{Journey, ackers, agent, component};

/// `agora check` and `agora run` both refuse the image, with this in what they say, and nothing is there afterwards.
#[track_caller]
fn is_refused(manifest: &str, expected: &[&str]) {
    let journey = Journey::new(manifest);
    let data = journey.data().display().to_string();
    let runs: [&[&str]; 2] = [&["check", "image"], &["run", "image", "--data", &data]];
    for args in runs {
        let ran = journey.agora_in(journey.folder(), args).exits(1);
        for part in expected {
            assert!(
                ran.stderr.contains(part),
                "{args:?}: no '{part}' in:\n{}",
                ran.stderr
            );
        }
    }
    assert!(
        !journey.data().exists(),
        "a refused image leaves no data folder"
    );
}

#[test]
fn an_unknown_key_is_told_with_its_line_and_the_nearest_one() {
    is_refused(
        "[channels.build-coord]\nhopps = 3\n",
        &["agora.toml:2:", "unknown key 'hopps'", "'hops'"],
    );
}

#[test]
fn an_unknown_channel_is_told_with_its_line_and_the_nearest_one() {
    is_refused(
        &format!(
            "[channels.build-coord]\n{}",
            agent("a", "acker", "bild-coord", "[\"read\"]")
        ),
        &[
            "agora.toml:5:",
            "unknown channel 'bild-coord'",
            "'build-coord'",
        ],
    );
}

#[test]
fn an_unknown_act_and_an_unknown_right_are_told_with_the_nearest_ones() {
    let manifest = format!(
        "[channels.c]\n{}acts = [\"infrom\"]\n",
        agent("a", "acker", "c", "[\"raed\"]")
    );
    is_refused(
        &manifest,
        &[
            "agora.toml:6:",
            "'raed'",
            "'read'",
            "agora.toml:7:",
            "'infrom'",
            "'inform'",
        ],
    );
}

#[test]
fn a_bad_unit_is_told_with_its_line() {
    let manifest = "[channels.c]\n[agents.a]\ncomponent = \"a.wasm\"\nmemory = \"64 parsecs\"\n";
    is_refused(manifest, &["agora.toml:4:", "memory"]);
}

#[test]
fn an_agent_named_twice_is_told_with_its_line() {
    let twice = agent("a", "acker", "c", "[\"read\"]").repeat(2);
    is_refused(&format!("[channels.c]\n{twice}"), &["agora.toml:7:"]);
}

#[test]
fn a_missing_component_is_told_with_its_path_and_what_to_do() {
    let manifest = "[channels.c]\n[agents.a]\ncomponent = \"nowhere.wasm\"\n";
    is_refused(manifest, &["agent 'a'", "nowhere.wasm", "agora build"]);
}

#[test]
fn a_component_of_no_known_world_is_refused_with_what_it_imports() {
    let manifest = format!(
        "[channels.c]\n{}",
        agent("a", "forbidden", "c", "[\"read\"]")
    );
    is_refused(
        &manifest,
        &["agent 'a'", "wasi:clocks/", "wasi:filesystem/"],
    );
}

#[test]
fn what_is_no_component_is_refused() {
    let journey = Journey::new("[channels.c]\n[agents.a]\ncomponent = \"a.wasm\"\n");
    std::fs::write(journey.image().join("a.wasm"), "not wasm").expect("the folder is ours");
    let ran = journey
        .agora_in(journey.folder(), &["check", "image"])
        .exits(1);
    assert!(ran.stderr.contains("a.wasm"), "{}", ran.stderr);
}

#[test]
fn an_image_that_is_well_is_said_to_be() {
    let journey = Journey::new(&ackers(2));
    let ran = journey
        .agora_in(journey.folder(), &["check", "image"])
        .exits(0);
    assert!(
        ran.stdout.contains("2 agents, 2 channels"),
        "{}",
        ran.stdout
    );
    assert!(!journey.data().exists(), "checking starts nothing");
    assert!(component("acker").is_file());
}

#[test]
fn names_that_are_not_there_are_told_with_those_that_are() {
    let journey = Journey::new(&ackers(2));
    let _host = journey.start(&[]);
    let cases: [(&[&str], &str); 6] = [
        (&["say", "build-cord", "x"], "'build-coord'"),
        (&["say", "nowhere", "x"], "build-coord, secret-ops"),
        (&["kill", "nobody"], "acker-1, acker-2"),
        (&["start", "acker-3"], "'acker-1'"),
        (&["grant", "acker-1", "secret-op"], "'secret-ops'"),
        (&["revoke", "g77"], "g1"),
    ];
    for (args, expected) in cases {
        let ran = journey.cli(args).exits(1);
        assert!(ran.stderr.contains(expected), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn usage_errors_exit_with_two() {
    let journey = Journey::new(&ackers(1));
    let cases: [&[&str]; 6] = [
        &["fly"],
        &["run"],
        &["run", "image", "--say", "no channel"],
        &["say", "build-coord"],
        &["say", "build-coord", "x", "--act", "sing"],
        &["epoch", "bump"],
    ];
    for args in cases {
        journey.agora_in(journey.folder(), args).exits(2);
    }
}

#[test]
fn a_second_host_on_a_data_folder_is_refused_and_the_first_goes_on() {
    let journey = Journey::new(&ackers(1));
    let host = journey.start(&[]);
    let (status, _, stderr) = journey.spawn(&[]).until_exit();
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("in use by another host"), "{stderr}");
    journey.say("build-coord", "still there?");
    host.until_message("ack operator:0: still there?");
}

#[test]
fn verbs_without_a_host_say_how_to_start_one() {
    let journey = Journey::new(&ackers(1));
    let cases: [&[&str]; 4] = [
        &["ps"],
        &["watch"],
        &["epoch", "show"],
        &["kill", "acker-1"],
    ];
    for args in cases {
        let ran = journey.cli(args).exits(1);
        assert!(
            ran.stderr.contains("no host answers"),
            "{args:?}: {}",
            ran.stderr
        );
        assert!(ran.stderr.contains("agora run"), "{args:?}: {}", ran.stderr);
    }
    let ran = journey.cli(&["log"]).exits(1);
    assert!(ran.stderr.contains("no data folder"), "{}", ran.stderr);
}
