//! The `zoo` command: looks at the registry of networks, their pictures and their checkpoints, runs and trains them.

mod bench;
mod check;
mod convert;
mod embed;
mod eval;
mod export;
mod info;
mod labels;
mod list;
mod manual;
mod network;
mod pictures;
mod plot;
mod predict;
mod recipe;
mod report;
mod run;
mod text;
mod train;
mod trained;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;
use zoo_train::errors;
use zoo_train::machine::restart_with_threads;
use zoo_train::progress::say;

/// Keeps the pages of activations between steps instead of giving them back to the kernel.
#[global_allocator]
static ALLOCATOR: zoo_core::memory::CachingAllocator = zoo_core::memory::CachingAllocator;

#[derive(Parser)]
#[command(name = "zoo", version, about = "The classic image networks on Candle")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the networks with their parameters, image size, checkpoint keys and paper
    List(list::Args),
    /// Show a network layer by layer: output shapes, parameters, multiply-adds
    Info(info::Args),
    /// Draw a network as a picture: blocks, shapes, shortcuts
    Plot(plot::Args),
    /// Check whether a checkpoint fits a network: which keys match, are missing, unexpected or of another shape
    Check(check::Args),
    /// Convert a checkpoint to safetensors, under the network's own keys if it is named
    Convert(convert::Args),
    /// Measure how many images a second a network trains and classifies
    Bench(bench::Args),
    /// Run a network on a stored tensor and store its logits; with --grads also loss, gradients and running statistics
    Run(run::Args),
    /// Classify pictures: print the most probable classes of each
    Predict(predict::Args),
    /// Turn pictures into vectors: what a trained network sees in each, to search or cluster with
    Embed(embed::Args),
    /// Write a trained network as an ONNX file, or as a folder that timm and the hub read
    Export(export::Args),
    /// Measure how many test images a trained network classifies right
    Eval(eval::Args),
    /// Train a network on a folder of images or on CIFAR-10, from scratch or from a checkpoint
    Train(Box<train::Args>),
    /// Write a page about runs: curves, results, confusion and mistakes
    Report(report::Args),
    /// Print a script that completes this command in a shell
    Completions(manual::Completions),
    /// Print this command's manual, or write a page for each command
    Man(manual::Man),
    /// List the recipes that networks are trained by, or show every setting of one
    Recipe(recipe::Args),
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
        Command::List(args) => list::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Embed(args) => embed::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Completions(args) => manual::completions(&args, Cli::command()),
        Command::Man(args) => manual::man(&args, Cli::command()),
        Command::Recipe(args) => recipe::run(&args),
    });
    errors::exit(result)
}
