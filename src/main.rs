//! The `txrelay` command: everything is in the library.

fn main() -> std::process::ExitCode {
    txrelay::cli::main()
}
