//! Listens to a forward pass: keeps every intermediate that the case has an output for, and injects the golden one in its place.

use std::cell::RefCell;
use std::rc::Rc;

use touchstone_golden::Case;
use touchstone_runtime::taps::Listener;

use crate::ops::Produced;

/// What the taps of one run said. A pass may come in several calls; each holds the next rows of every sequence.
pub struct Recorder {
    slots: Rc<RefCell<Vec<Slot>>>,
}

/// One output of the case, seen as `[batch, time, channels]`.
struct Slot {
    path: String,
    produced: Produced,
    golden: Vec<f64>,
    inject: bool,
    batch: usize,
    time: usize,
    channels: usize,
    seen: usize,
}

impl Recorder {
    /// Waits for every output of the case. `last` is the module's last tap, which the case stores as `y`; `batch` is B where the pass comes in
    /// several calls, and 1 otherwise.
    pub fn new(case: &Case, last: &str, batch: usize, inject: bool) -> Self {
        let slots = case.outputs().iter().map(|output| {
            let (reference, path) = (&output.reference, if output.name == "y" { last } else { &output.name });
            let (len, channels) = (reference.values.len(), reference.channels());
            Slot {
                path: path.to_owned(),
                produced: Produced {
                    name: output.name.clone(),
                    shape: reference.shape.clone(),
                    // An intermediate that is not reported stays NaN, which never passes.
                    values: vec![f64::NAN; len],
                },
                golden: reference.values.clone(),
                inject,
                batch,
                time: len / (batch * channels),
                channels,
                seen: 0,
            }
        });
        Self { slots: Rc::new(RefCell::new(slots.collect())) }
    }

    /// What the backend's taps call.
    pub fn listener(&self) -> Listener {
        let slots = Rc::clone(&self.slots);
        Box::new(move |path, values| {
            let mut slots = slots.borrow_mut();
            slots.iter_mut().find(|slot| slot.path == path).and_then(|slot| slot.hear(values))
        })
    }

    /// What was heard, in the case's order of outputs, which is the order of computation.
    pub fn finish(self) -> Vec<Produced> {
        self.slots.borrow_mut().drain(..).map(|slot| slot.produced).collect()
    }
}

impl Slot {
    /// Keeps the next rows and answers with the golden ones.
    fn hear(&mut self, values: &[f64]) -> Option<Vec<f64>> {
        let rows = values.len() / (self.batch * self.channels);
        if values.len() != rows * self.batch * self.channels || self.seen + rows > self.time {
            // More than the case holds, or another width: the judge refuses the shape.
            self.produced.shape = vec![self.seen * self.batch * self.channels + values.len()];
            return None;
        }
        let mut replacement = values.to_vec();
        for sequence in 0..self.batch {
            let whole = (sequence * self.time + self.seen) * self.channels..;
            let part = sequence * rows * self.channels..(sequence + 1) * rows * self.channels;
            let whole = whole.start..whole.start + part.len();
            self.produced.values[whole.clone()].copy_from_slice(&values[part.clone()]);
            replacement[part].copy_from_slice(&self.golden[whole]);
        }
        self.seen += rows;
        self.inject.then_some(replacement)
    }
}
