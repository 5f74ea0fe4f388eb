//! How long to wait before a task that died is started again.

use std::time::Duration;

/// After the first death.
const FIRST: Duration = Duration::from_millis(100);
/// The pauses double up to here.
const LONGEST: Duration = Duration::from_secs(5);
/// Who lived so long died by chance: the pauses begin again.
const CALM: Duration = Duration::from_secs(60);

/// Pauses that grow while deaths follow each other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pause {
    in_a_row: u32,
}

impl Pause {
    /// It died again, having lived for so long. How long to wait.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= CALM {
            self.in_a_row = 0;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        let doubled = 1u32 << (self.in_a_row - 1).min(16);
        FIRST.saturating_mul(doubled).min(LONGEST)
    }

    /// Deaths that followed each other.
    pub fn in_a_row(&self) -> u32 {
        self.in_a_row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_begin_again_after_a_calm_time() {
        let mut pause = Pause::default();
        let millis = |pause: &mut Pause, lived| pause.after(Duration::from_secs(lived)).as_millis();
        assert_eq!(
            [0, 1, 2].map(|lived| millis(&mut pause, lived)),
            [100, 200, 400]
        );
        for _ in 0..100 {
            assert!(millis(&mut pause, 0) <= 5000);
        }
        assert_eq!(millis(&mut pause, 0), 5000);
        assert_eq!((millis(&mut pause, 60), pause.in_a_row()), (100, 1));
    }
}
