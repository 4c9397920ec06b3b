//! Calls without pause while the server goes and comes back: no call may fail, no append be lost or doubled. The
//! retries are those of the service config; there is no other here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use tokio::task::JoinSet;

use crate::scenario::Scenario;

const WORKERS: usize = 4;
const AFTER: usize = 20; // calls of each kind once the server is back

pub async fn run(scenario: &Scenario) -> Result<()> {
    let before = scenario.all().await?.len();
    let back = Arc::new(AtomicBool::new(false));
    let mut workers: JoinSet<_> = (0..WORKERS).map(|_| work(scenario.clone(), back.clone())).collect();
    println!("restart?");
    tokio::spawn(async move {
        let _ = BufReader::new(stdin()).read_line(&mut String::new()).await;
        back.store(true, Ordering::Relaxed);
    });
    let mut answered = Vec::new();
    while let Some(ids) = workers.join_next().await {
        answered.extend(ids??);
    }
    same(answered, scenario.all().await?.split_off(before))
}

/// The ids of the items that were appended as far as the answers tell.
async fn work(scenario: Scenario, back: Arc<AtomicBool>) -> Result<Vec<String>> {
    let mut appended = Vec::new();
    let mut left = AFTER;
    while left > 0 {
        if back.load(Ordering::Relaxed) {
            left -= 1;
        }
        scenario.read().await?;
        appended.push(scenario.append_one("still there?").await?);
    }
    Ok(appended)
}

/// Lost, doubled and foreign items all show here.
fn same(mut answered: Vec<String>, mut stored: Vec<String>) -> Result<()> {
    answered.sort();
    stored.sort();
    ensure!(answered == stored, "{} appends were answered, {} items are stored", answered.len(), stored.len());
    Ok(())
}
