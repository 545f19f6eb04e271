//! An agent's first minute.

use super::harness::{Journey, component, workspace};

#[test]
fn a_new_agent_is_built_and_runs() {
    // Any component's build fetches what this one needs.
    component("acker");
    let journey = Journey::new("");
    let made = journey
        .agora_in(journey.folder(), &["new", "greeter"])
        .exits(0);
    assert!(made.stdout.contains("cd greeter"), "{}", made.stdout);
    journey
        .agora_in(journey.folder(), &["new", "greeter"])
        .exits(1);
    journey
        .agora_in(journey.folder(), &["new", "Not a Name"])
        .exits(1);
    let crate_folder = journey.folder().join("greeter");
    // The same versions as everywhere here, so that nothing need be fetched.
    let locked = std::fs::copy(
        workspace().join("Cargo.lock"),
        crate_folder.join("Cargo.lock"),
    );
    locked.expect("the workspace has a lock file");

    // From elsewhere its source is not trusted unasked.
    let far = journey
        .agora_in(journey.folder(), &["run", "greeter/image", "--until-quiet"])
        .exits(1);
    assert!(far.stderr.contains("--trust-source"), "{}", far.stderr);

    let ran = journey
        .agora_in(
            &crate_folder,
            &[
                "run",
                "image",
                "--json",
                "--say",
                "hello=is anybody there?",
                "--until-quiet",
            ],
        )
        .exits(0);
    let lines = super::harness::json_lines(&ran.stdout);
    let said = super::harness::messages(&lines);
    assert!(
        said.iter().any(|m| m["author"] == "greeter"),
        "{said:#?}\n{}",
        ran.stderr
    );
    assert!(
        crate_folder.join(".agora").is_dir(),
        "its data lies beside its image"
    );
}
