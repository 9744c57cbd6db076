//! A scenario as data: what runs, where, and what must come of it.

use half::bf16;
use touchstone_runtime::{Cuda, Host};

use crate::verdict::Outcome;
use crate::witness::Witness;

/// What a scenario's body says: an error is a scenario that failed, or a promise broken.
pub type Check = anyhow::Result<()>;

/// Where a scenario runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The host backend in float32.
    HostF32,
    /// The GPU backend in float32.
    CudaF32,
    /// The GPU backend in bfloat16.
    CudaBf16,
    /// The GPU, which the scenario itself opens and closes.
    Cuda,
}

impl Place {
    /// Its name in a scenario's.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::HostF32 => "host-f32",
            Self::CudaF32 => "cuda-f32",
            Self::CudaBf16 => "cuda-bf16",
            Self::Cuda => "cuda",
        }
    }
}

/// One run of a scenario. What it makes, it drops.
pub type Run<B> = Box<dyn Fn(&mut B) -> Check + Send + Sync>;

/// What runs. All bodies but [`Body::Alone`] get a backend that was opened before the baseline.
pub enum Body {
    /// On the host.
    Host(Run<Host<f32>>),
    /// On the GPU in float32.
    CudaF32(Run<Cuda<f32>>),
    /// On the GPU in bfloat16.
    CudaBf16(Run<Cuda<bf16>>),
    /// On the GPU, with no device open at the baseline: the ledger must be empty there.
    Alone(Box<dyn Fn() -> Check + Send + Sync>),
}

/// What must come of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Every witness back at its baseline.
    Clean,
    /// A planted leak: seen by all of `seen_by` and none of `unseen_by`, the ledger's change naming `handle`.
    Leak {
        /// Those who must see it.
        seen_by: &'static [Witness],
        /// Those who must not.
        unseen_by: &'static [Witness],
        /// The kind of handle that the ledger must miss; empty where it misses none.
        handle: &'static str,
    },
    /// A planted broken promise: the scenario fails with these words.
    Violation(&'static str),
    /// A planted end of the process that brings no verdict: the parent says why with these words.
    NoVerdict(&'static str),
}

/// A scenario.
pub struct Scenario {
    /// What is tested: an op, a module, `model`, `device`.
    pub subject: String,
    /// What is done with it.
    pub manner: &'static str,
    /// Where.
    pub place: Place,
    /// Stems of the kernels' entry points that it launches on a GPU.
    pub entries: &'static [&'static str],
    /// What runs.
    pub body: Body,
    /// What must come of it.
    pub expect: Expect,
    /// Runs between two readings of every witness.
    pub iterations: u32,
}

impl Scenario {
    /// Its name: subject, manner and place.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}/{}", self.subject, self.manner, self.place.name())
    }

    /// Whether it needs a GPU.
    #[must_use]
    pub fn on_gpu(&self) -> bool {
        self.place != Place::HostF32
    }
}

impl Expect {
    /// Whether `outcome`, with the ledger's change in words, is what was expected.
    ///
    /// # Errors
    /// What is different.
    pub fn check(&self, outcome: &Outcome, ledger: &str) -> Result<(), String> {
        let met = match (self, outcome) {
            (Self::Clean, Outcome::Clean) => true,
            (Self::Leak { seen_by, unseen_by, handle }, Outcome::Leak(seen)) => {
                seen_by.iter().all(|witness| seen.contains(witness))
                    && !unseen_by.iter().any(|witness| seen.contains(witness))
                    && ledger.contains(handle)
            }
            (Self::Violation(words), Outcome::Failed(message)) => message.contains(words),
            _ => false,
        };
        if met { Ok(()) } else { Err(format!("expected {self:?}, got {outcome:?}; ledger: {ledger:?}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLANT: Expect =
        Expect::Leak { seen_by: &[Witness::Ledger], unseen_by: &[Witness::Host], handle: "Event" };

    /// Without this, a planted leak could count as found though the wrong witness, or none, saw it.
    #[test]
    fn a_plant_is_found_by_the_right_witness_only() {
        let leak = |seen: &[Witness]| Outcome::Leak(seen.to_vec());
        assert_eq!(PLANT.check(&leak(&[Witness::Ledger]), "+1 Event (+0 bytes)"), Ok(()));
        let wrong = [
            (Outcome::Clean, ""),
            (Outcome::Inconclusive("neighbour".into()), ""),
            (Outcome::Failed("an error".into()), ""),
            (leak(&[Witness::Driver]), "+1 Event (+0 bytes)"),
            (leak(&[Witness::Ledger, Witness::Host]), "+1 Event (+0 bytes)"),
            (leak(&[Witness::Ledger]), "+1 Stream (+0 bytes)"),
        ];
        for (outcome, ledger) in wrong {
            assert!(PLANT.check(&outcome, ledger).is_err(), "{outcome:?} {ledger}");
        }
    }

    /// Without this, a scenario that leaks, fails or cannot be judged could pass.
    #[test]
    fn only_a_clean_outcome_is_clean() {
        assert_eq!(Expect::Clean.check(&Outcome::Clean, ""), Ok(()));
        let others = [
            Outcome::Leak(vec![Witness::Nvml]),
            Outcome::Inconclusive(String::new()),
            Outcome::Failed(String::new()),
        ];
        assert!(others.iter().all(|outcome| Expect::Clean.check(outcome, "").is_err()));
    }
}
