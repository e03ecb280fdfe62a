//! The repository's own chores: `cargo xtask bench-cifar` runs the benchmark suite, `cargo xtask tidy` checks that the
//! tree keeps its rules.

mod bench_cifar;
mod tidy;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;
use zoo_train::errors;
use zoo_train::machine::restart_with_threads;
use zoo_train::progress::say;

/// Keeps the pages of activations between steps instead of giving them back to the kernel.
#[global_allocator]
static ALLOCATOR: zoo_core::memory::CachingAllocator = zoo_core::memory::CachingAllocator;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The zoo's benchmark suite and chores")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train networks on CIFAR-10 and write a report with our accuracies beside the published ones
    BenchCifar(Box<bench_cifar::Args>),
    /// Check the rules that the compiler does not: registration, dependencies between crates, where device code stands
    Tidy,
}

fn main() -> ExitCode {
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        // Of whichever command: some have no such argument.
        let args = matches.subcommand().map(|(_, args)| args);
        let threads = args.and_then(|args| args.try_get_one::<usize>("threads").ok().flatten().copied());
        Ok((Cli::from_arg_matches(&matches)?, threads))
    });
    let (cli, threads) = parsed.unwrap_or_else(|error| match errors::shortened(&error.to_string()) {
        Some(short) if error.use_stderr() => {
            say(short);
            std::process::exit(error.exit_code())
        }
        _ => error.exit(),
    });
    let result = restart_with_threads(threads).and_then(|()| match cli.command {
        Command::BenchCifar(args) => bench_cifar::run(&args),
        Command::Tidy => tidy::run(),
    });
    errors::exit(result)
}
