//! `tb-client`: what runs in the testbed's client namespace. Results are one line on stdout.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tranship_tests::counter;
use tranship_tests::resp::{Answer, Connection};
use tranship_tests::workload::questions;

/// Clients of the containers under test.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Increment a key of a Redis on one connection until stdin ends; print what happened as JSON.
    Count {
        /// ADDRESS:PORT.
        address: SocketAddr,
        /// Which key.
        key: String,
        /// Microseconds between an answer and the next question.
        #[arg(long, default_value_t = 500)]
        pause_us: u64,
        /// Seconds to wait for an answer.
        #[arg(long, default_value_t = 180)]
        patience_s: u64,
    },
    /// Ask a workload how it is and print the answer.
    Ask {
        /// ADDRESS:PORT.
        address: SocketAddr,
        /// Seconds to wait for an answer.
        patience_s: u64,
    },
    /// Ask a Redis one thing and print the answer.
    Redis {
        /// ADDRESS:PORT.
        address: SocketAddr,
        /// The command.
        #[arg(required = true, trailing_var_arg = true)]
        words: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tb-client: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Count {
            address,
            key,
            pause_us,
            patience_s,
        } => counter::main(
            address,
            &key,
            Duration::from_micros(pause_us),
            Duration::from_secs(patience_s),
        ),
        Verb::Ask { address, patience_s } => {
            println!(
                "{}",
                questions::ask(address, "how are you", Duration::from_secs(patience_s))?
            );
            Ok(())
        }
        Verb::Redis { address, words } => {
            match Connection::open(address, Duration::from_secs(10))?.ask(&words)? {
                Answer::Number(number) => println!("{number}"),
                Answer::Bytes(bytes) => println!("{}", String::from_utf8_lossy(&bytes)),
                Answer::Nothing => println!("(nil)"),
            }
            Ok(())
        }
    }
}
