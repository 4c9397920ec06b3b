//! A Rust client that tries every method, and prints a line after each successful step.

mod backoff;
mod client;
mod configured;
mod health;
mod lifecycle_steps;
mod restart;
mod scenario;
mod service_config;
mod watch;
mod watch_steps;

mod pb {
    #![allow(dead_code, clippy::all)]
    tonic::include_proto!("conversations.v1");
}

use std::{env, fs, process};

use anyhow::{Context, Result};

use lifecycle_steps::LifecycleSteps;
use scenario::Scenario;
use watch_steps::WatchSteps;

#[tokio::main]
async fn main() {
    if let Err(problem) = run().await {
        eprintln!("{problem:#}"); // including its causes
        process::exit(1); // a return would wait for the task that reads stdin
    }
}

async fn run() -> Result<()> {
    let config = fs::read_to_string(env::var("SERVICE_CONFIG")?)?;
    let channel = client::channel(&env::var("TARGET")?, &config)?;
    let client = client::client_on(channel.clone());
    let mut scenario = Scenario::new(client, env::var("LOCKED")?);
    done("create", scenario.create().await)?;
    done("append", scenario.append().await)?;
    done("pages", scenario.pages().await)?;
    done("etag", scenario.etag().await)?;
    done("not_found", scenario.not_found().await)?;
    done("denied", scenario.denied().await)?;
    done("deadline", scenario.deadline().await)?;
    done("stream", scenario.stream().await)?;

    let (transfers, erasures) = (client::transfers_on(channel.clone()), client::erasures_on(channel));
    let lifecycle = LifecycleSteps { scenario: &scenario, transfers, erasures };
    done("retention", lifecycle.retention().await)?;
    done("rewind", lifecycle.rewind().await)?;
    done("fork", lifecycle.fork().await)?;
    done("undelete", lifecycle.undelete().await)?;
    done("delete_many", lifecycle.delete_many().await)?;
    done("transfer", lifecycle.transfer().await)?;
    done("restart", restart::run(&scenario).await)?;

    let client = client::connect(&env::var("TARGET")?, &config)?; // a connection for watches; 100 at most
    let scripted = client::connect(&env::var("SCRIPTED")?, &config)?;
    let watches = WatchSteps { scenario, client, scripted };
    done("watch", watches.watch().await)?;
    done("watch_reset", watches.reset().await)?;
    done("watch_refused", watches.refused().await)?;
    done("watch_silence", watches.silence().await)?;
    done("watch_ends", watches.ends().await)?;
    done("watch_restart", watches.restart().await)
}

fn done(step: &'static str, outcome: Result<()>) -> Result<()> {
    outcome.context(step)?;
    println!("ok {step}");
    Ok(())
}
