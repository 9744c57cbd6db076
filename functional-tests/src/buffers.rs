//! Buffers that show misuse: outputs begin as NaN, so that an element never written is seen; behind every buffer lies a guard, NaN as well:
//! what is read from there spoils the result, what is written there is found.

use std::marker::PhantomData;

use touchstone_runtime::Backend;
use touchstone_runtime::backend::Step;
use touchstone_runtime::plan::{Entry, Kind};

use crate::error::{Error, Result};

/// Elements behind the end of every buffer.
const GUARD: usize = 64;
/// What a cache holds where nothing has been cached: huge, so that whoever reads it cannot miss it.
pub const UNUSED: f64 = 1e30;

/// A buffer of `len` elements and a guard.
pub struct Guarded<B: Backend, S: Space<B>> {
    /// The backend's own buffer, for the verbs.
    pub buffer: S::Buffer,
    name: &'static str,
    len: usize,
    space: PhantomData<S>,
}

impl<B: Backend, S: Space<B>> Guarded<B, S> {
    /// A buffer that holds `values`.
    pub fn input(b: &mut B, name: &'static str, values: &[f64]) -> Result<Self> {
        let len = values.len();
        let mut buffer = S::make(b, &Entry::new(name, &[len + GUARD], S::KIND))?;
        let mut guarded = values.to_vec();
        guarded.resize(len + GUARD, f64::NAN);
        S::write(b, &mut buffer, &guarded)?;
        Ok(Self { buffer, name, len, space: PhantomData })
    }

    /// A buffer of NaN.
    pub fn output(b: &mut B, name: &'static str, len: usize) -> Result<Self> {
        Self::input(b, name, &vec![f64::NAN; len])
    }

    /// What the buffer holds. Errors: its guard was written.
    pub fn read(&self, b: &mut B) -> Result<Vec<f64>> {
        let mut values = S::read(b, &self.buffer, self.len + GUARD)?;
        match values[self.len..].iter().position(|value| !value.is_nan()) {
            Some(stray) => {
                Err(Error::StrayWrite { buffer: self.name.into(), element: self.len + stray, len: self.len })
            }
            None => {
                values.truncate(self.len);
                Ok(values)
            }
        }
    }
}

/// A kind of buffer that a backend has.
pub trait Space<B: Backend> {
    /// The backend's type for it.
    type Buffer;
    /// Its kind in the memory plan.
    const KIND: Kind;
    /// Allocates.
    fn make(b: &mut B, entry: &Entry) -> Result<Self::Buffer>;
    /// Writes from the front.
    fn write(b: &mut B, y: &mut Self::Buffer, values: &[f64]) -> Result<()>;
    /// Reads from the front.
    fn read(b: &mut B, x: &Self::Buffer, len: usize) -> Result<Vec<f64>>;
}

/// Activations and cache.
pub struct Working;
/// Residual stream and logits.
pub struct Wide;

impl<B: Backend> Space<B> for Working {
    type Buffer = B::Buf;
    const KIND: Kind = Kind::Working;

    fn make(b: &mut B, entry: &Entry) -> Result<B::Buf> {
        Ok(b.buf(entry)?)
    }

    fn write(b: &mut B, y: &mut B::Buf, values: &[f64]) -> Result<()> {
        Ok(b.write(y, values)?)
    }

    fn read(b: &mut B, x: &B::Buf, len: usize) -> Result<Vec<f64>> {
        Ok(b.read(x, len)?)
    }
}

impl<B: Backend> Space<B> for Wide {
    type Buffer = B::Wide;
    const KIND: Kind = Kind::Wide;

    fn make(b: &mut B, entry: &Entry) -> Result<B::Wide> {
        Ok(b.wide(entry)?)
    }

    fn write(b: &mut B, y: &mut B::Wide, values: &[f64]) -> Result<()> {
        Ok(b.write_wide(y, values)?)
    }

    fn read(b: &mut B, x: &B::Wide, len: usize) -> Result<Vec<f64>> {
        Ok(b.read_wide(x, len)?)
    }
}

/// A buffer of ids that holds `values`.
pub fn ids<B: Backend>(b: &mut B, name: &str, values: &[u32]) -> Result<B::Ids> {
    let mut ids = b.ids(&Entry::new(name, &[values.len()], Kind::Ids))?;
    b.write_ids(&mut ids, values)?;
    Ok(ids)
}

/// Cursors of `shape.batch` sequences in a pass of `shape.time` positions of their own, behind `past` cached ones.
pub fn cursor<B: Backend>(b: &mut B, past: usize, shape: Step) -> Result<B::Ids> {
    let places = vec![[number(past), 0, number(shape.time)]; shape.batch];
    ids(b, "cursor", places.as_flattened())
}

/// A position as cursors hold it.
pub fn number(position: usize) -> u32 {
    u32::try_from(position).expect("positions fit u32")
}

#[cfg(test)]
mod tests {
    use touchstone_runtime::{Backend, Host};

    use super::{Guarded, Wide, Working};
    use crate::error::Error;

    /// Without this, a kernel that writes past its output, or leaves part of it as it was, would go unseen.
    #[test]
    fn a_stray_write_is_an_error_and_a_missing_one_stays_nan() {
        let b = &mut Host::<f32>::new();
        let mut y = Guarded::<_, Working>::output(b, "y", 4).unwrap();
        b.write(&mut y.buffer, &[1.0; 3]).unwrap();
        let values = y.read(b).unwrap();
        assert!(values[..3] == [1.0; 3] && values[3].is_nan(), "{values:?}");
        b.write(&mut y.buffer, &[1.0; 6]).unwrap();
        assert!(matches!(y.read(b), Err(Error::StrayWrite { element: 4, len: 4, .. })));
    }

    /// Without this, reading past an input would find harmless zeros.
    #[test]
    fn behind_an_input_lies_nan() {
        let b = &mut Host::<f32>::new();
        let x = Guarded::<_, Wide>::input(b, "x", &[1.0, 2.0]).unwrap();
        let behind = b.read_wide(&x.buffer, 3).unwrap();
        assert!(behind[..2] == [1.0, 2.0] && behind[2].is_nan(), "{behind:?}");
    }
}
