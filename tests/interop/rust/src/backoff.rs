//! Exponential backoff.

use std::time::Duration;

pub struct Backoff {
    first: Duration,
    longest: Duration,
    multiplier: f64,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration, multiplier: f64) -> Self {
        Self { first, longest, multiplier, next: first }
    }

    /// The next pause, randomised by a fifth, so that clients that failed together do not retry together.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next.min(self.longest);
        self.next = pause.mul_f64(self.multiplier);
        pause.mul_f64(0.8 + 0.4 * fastrand::f64())
    }

    pub fn reset(&mut self) {
        self.next = self.first;
    }
}
