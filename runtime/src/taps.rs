//! Named taps: a forward pass can report every intermediate under its PyTorch module path, and take a replacement.

use clap::ValueEnum;

use crate::backend::Backend;
use crate::error::Result;

/// Is told every intermediate; may answer with values that take its place (injection).
///
/// Arguments: the module path (`blocks.0.attention.core`) and the values. The answer has as many values.
pub type Listener = Box<dyn FnMut(&str, &[f64]) -> Option<Vec<f64>>>;

/// How a model is run. The results are the same within rounding: each path is the test twin of those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Path {
    /// As fast as the backend can: decode steps all at once, where it has something for the model.
    #[default]
    Fastest,
    /// The same, but a model that is made meanwhile is spread over all of the device, however small it is.
    Grid,
    /// The same, in shards that are made up of several multiprocessors each.
    Shards,
    /// Step by step, by fused verbs.
    Steps,
    /// By plain verbs, one op each.
    Plain,
}

/// What a backend keeps about taps and about the choice between fused and plain verbs.
#[derive(Default)]
pub struct Taps {
    listener: Option<Listener>,
    path: Path,
    clocked: bool,
}

impl Taps {
    /// Installs a listener, or removes it. While there is one, fused verbs take their plain composition, because only
    /// that has every intermediate.
    pub fn listen(&mut self, listener: Option<Listener>) {
        self.listener = listener;
    }

    /// Chooses the path, also where nobody listens.
    pub fn set_path(&mut self, path: Path) {
        self.path = path;
    }

    /// Lets decoders that are made from now on read the clock at each handoff, or no more. It costs them time.
    pub fn set_clocked(&mut self, clocked: bool) {
        self.clocked = clocked;
    }

    /// Whether decoders read the clock.
    #[must_use]
    pub fn clocked(&self) -> bool {
        self.clocked
    }

    /// Whether fused verbs must take their plain composition.
    #[must_use]
    pub fn plain(&self) -> bool {
        self.path == Path::Plain || self.listener.is_some()
    }

    /// Whether decode steps may run all at once.
    #[must_use]
    pub fn at_once(&self) -> bool {
        matches!(self.path, Path::Fastest | Path::Grid | Path::Shards) && self.listener.is_none()
    }

    /// The path chosen.
    #[must_use]
    pub fn path(&self) -> Path {
        self.path
    }
}

/// A borrowed intermediate.
pub enum Tap<'a, B: Backend> {
    /// Activations.
    Working(&'a mut B::Buf),
    /// Residual stream or logits.
    Wide(&'a mut B::Wide),
}

/// Shows the first `len` values of `value` to the listener as `scope.point`, and writes its answer back.
///
/// Costs one branch where nobody listens.
///
/// # Errors
/// Those of reading and writing the buffer.
pub fn tap<B: Backend>(b: &mut B, scope: &str, point: &str, mut value: Tap<'_, B>, len: usize) -> Result<()> {
    let Some(mut listener) = b.taps().listener.take() else { return Ok(()) };
    let path = if scope.is_empty() { point.to_owned() } else { format!("{scope}.{point}") };
    let result = match &mut value {
        Tap::Working(buf) => b.read(buf, len),
        Tap::Wide(wide) => b.read_wide(wide, len),
    }
    .and_then(|values| match (listener(&path, &values), value) {
        (None, _) => Ok(()),
        (Some(replacement), Tap::Working(buf)) => b.write(buf, &replacement),
        (Some(replacement), Tap::Wide(wide)) => b.write_wide(wide, &replacement),
    });
    b.taps().listener = Some(listener);
    result
}
