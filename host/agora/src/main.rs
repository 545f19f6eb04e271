//! The `agora` command.

fn main() -> std::process::ExitCode {
    agora::cli::main()
}
