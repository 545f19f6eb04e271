//! The `agora` command.
//!
//! `run`, `check`, `build`, `new`, `doctor`, `id`, `log`, `import`, `verify`, `prove`, `checkpoint`, `mirror` and `witness` act by themselves; the
//! other verbs are clients of a running host's operator socket.
//! Exit codes: 0 done, 1 failed (or, for a stop, in effect but not yet in the log), 2 usage.

mod args;
mod checkpoint;
mod client;
mod diary;
mod facts;
mod id;
mod local;
mod mirror;
mod moving;
mod new;
mod peers;
mod prove;
mod run;
pub mod show;
mod source;
mod verify;
mod witness;
mod witnesses;

use std::process::ExitCode;

use clap::Parser;

pub(crate) use args::right_named;
use args::{Cli, Command, EpochCommand, RealmCommand};
use diary::Diary;

/// Runs the command line.
pub fn main() -> ExitCode {
    // Tests turn every feature on; a release is for use.
    if cfg!(all(feature = "bench", not(debug_assertions))) {
        eprintln!(
            "agora: this command was built for measuring (feature 'bench'), which can do without signatures (build it without)"
        );
        return ExitCode::FAILURE;
    }
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => "warn,agora::agent=info",
        1 => "info",
        _ => "debug,wasmtime=info,cranelift=info",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("AGORA_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let diary = match Diary::open() {
        Ok(diary) => diary,
        Err(error) => {
            eprintln!("agora: no thread can be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || diary.clone())
        .with_target(false)
        .with_ansi(show::is_terminal(&std::io::stderr()))
        .init();
    let result = match cli.command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => local::check(&args),
        Command::Build(args) => local::build(&args),
        Command::New(args) => new::new(&args),
        Command::Doctor(args) => match &args.accept_loss {
            None => local::doctor(&args),
            Some(reason) => local::accept_loss(&args.data.data(), reason),
        },
        Command::Id(args) => id::id(&args),
        Command::Log(args) => match &args.export {
            Some(to) => moving::export(&args.data.data(), &args.log, to),
            None => local::log(&args),
        },
        Command::Import(args) => moving::import(&args),
        Command::Prune(args) => client::prune(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Prove(args) => prove::prove(&args),
        Command::Checkpoint(args) => checkpoint::checkpoint(&args),
        Command::Mirror(args) => mirror::mirror(&args),
        Command::Witness(args) => witness::witness(&args),
        Command::Ps(args) => client::ps(&args),
        Command::Peers(args) => peers::peers(&args),
        Command::Dial(args) => peers::dial(&args),
        Command::Ping(args) => peers::ping(&args),
        Command::Watch(args) => client::watch(&args),
        Command::Say(args) => client::say(&args),
        Command::Grant(args) => client::grant(&args),
        Command::Revoke(args) => client::revoke(&args),
        Command::Kill(args) => client::kill(&args),
        Command::Start(args) => client::start(&args),
        Command::Rotate(args) => client::rotate(&args),
        Command::Epoch(args) => match args.command {
            None | Some(EpochCommand::Show) => client::epoch_show(&args.data.data()),
            Some(EpochCommand::Bump { hold, reason, wait }) => {
                client::epoch_bump(&args.data.data(), hold, &reason, wait)
            }
        },
        Command::Realm(args) => match args.command {
            None | Some(RealmCommand::Show) => client::realm_show(&args.data.data()),
            Some(RealmCommand::Invite { key }) => client::realm_invite(&args.data.data(), &key),
            Some(RealmCommand::Join { realm, identity }) => {
                id::realm_join(&args.data.data(), &identity.identity(), &realm)
            }
            Some(RealmCommand::Revoke { host, reason }) => {
                client::realm_revoke(&args.data.data(), &host, &reason)
            }
        },
    };
    Diary::flush();
    match result {
        Ok(code) => code,
        Err(error) => {
            // What only shows when all that was asked for is seen together.
            if let Some(usage) = error.downcast_ref::<clap::Error>() {
                let _ = usage.print();
                return ExitCode::from(2);
            }
            eprintln!("agora: {}", show::escape_lines(&whole(&error)));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, each told once.
fn whole(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
