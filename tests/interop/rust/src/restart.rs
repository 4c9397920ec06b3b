//! Keeps calling while the server restarts. No call may fail, and no append may be lost or duplicated. Only the service
//! config retries.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use tokio::task::JoinSet;

use crate::scenario::Scenario;

const WORKERS: usize = 4;
const AFTER: usize = 20; // calls of each kind after the restart

pub async fn run(scenario: &Scenario) -> Result<()> {
    let before = scenario.all().await?.len();
    let answered = work_through("restart?", scenario).await?;
    same(answered, scenario.all().await?.split_off(before))
}

/// Asks for a restart, and calls until it has been over for a while. Returns the ids of the items whose append was
/// answered.
pub async fn work_through(ask: &str, scenario: &Scenario) -> Result<Vec<String>> {
    let back = Arc::new(AtomicBool::new(false));
    let mut workers: JoinSet<_> = (0..WORKERS).map(|_| work(scenario.clone(), back.clone())).collect();
    println!("{ask}");
    tokio::spawn(async move {
        let _ = BufReader::new(stdin()).read_line(&mut String::new()).await;
        back.store(true, Ordering::Relaxed);
    });
    let mut answered = Vec::new();
    while let Some(ids) = workers.join_next().await {
        answered.extend(ids??);
    }
    Ok(answered)
}

/// The ids of the items whose append was answered.
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

/// Finds items that are lost, duplicated or foreign.
fn same(mut answered: Vec<String>, mut stored: Vec<String>) -> Result<()> {
    answered.sort();
    stored.sort();
    ensure!(answered == stored, "{} appends were answered, {} items are stored", answered.len(), stored.len());
    Ok(())
}
