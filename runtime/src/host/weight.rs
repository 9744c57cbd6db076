//! Parameters, laid out for the dot products.

use super::Float;
use super::dot::{Aligned, BLOCK, Bf16Block, padded};
use crate::weights::{Tensor, Values};

/// A parameter.
pub struct Weight<T> {
    rows: usize,
    columns: usize,
    values: Stored<T>,
}

/// A parameter's values. A matrix's rows are padded to whole blocks.
pub(super) enum Stored<T> {
    /// One dimension.
    Vector(Vec<T>),
    /// Two dimensions, in the working precision.
    Matrix(Vec<Aligned<T>>),
    /// Two dimensions, stored in bfloat16 and kept so: as exact, and fewer bytes travel.
    Bf16Matrix(Vec<Bf16Block>),
}

impl<T: Float> Weight<T> {
    /// Takes over a stored tensor of one or two dimensions.
    pub(super) fn new(tensor: &Tensor<'_>) -> Self {
        let (rows, columns) = match tensor.shape[..] {
            [columns] => (None, columns),
            [rows, columns] => (Some(rows), columns),
            _ => panic!("a parameter has one or two dimensions, not {:?}", tensor.shape),
        };
        let values = match &tensor.values {
            Values::F32(values) => converted(rows, columns, values, |x| T::from_f64(x.into())),
            Values::F64(values) => converted(rows, columns, values, T::from_f64),
            Values::Bf16(values) if rows.is_some() => {
                let blocks =
                    values.chunks_exact(columns).flat_map(|row| row.chunks(BLOCK).map(Bf16Block::new));
                Stored::Bf16Matrix(blocks.collect())
            }
            Values::Bf16(values) => converted(rows, columns, values, |x| T::from_f64(x.into())),
        };
        Self { rows: rows.unwrap_or(1), columns, values }
    }

    /// Number of rows; 1 for a vector.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// The values as they are stored.
    pub(super) fn stored(&self) -> &Stored<T> {
        &self.values
    }

    /// All values of a vector of `len`.
    pub(super) fn vector(&self, len: usize) -> &[T] {
        match &self.values {
            Stored::Vector(values) if values.len() == len => values,
            _ => panic!("a vector of {len} wanted, [{}, {}] there", self.rows, self.columns),
        }
    }

    /// The value of a matrix at `row` and `column`.
    #[inline]
    pub(super) fn get(&self, row: usize, column: usize) -> T {
        let block = row * self.columns.div_ceil(BLOCK) + column / BLOCK;
        match &self.values {
            Stored::Vector(_) => panic!("a matrix wanted, a vector of {} there", self.columns),
            Stored::Matrix(blocks) => blocks[block].0[column % BLOCK],
            Stored::Bf16Matrix(blocks) => T::from_f64(blocks[block].get(column % BLOCK).into()),
        }
    }
}

/// `values` in the working precision: a matrix of `rows`, or a vector.
fn converted<T: Float, V: Copy>(
    rows: Option<usize>,
    columns: usize,
    values: &[V],
    convert: impl Fn(V) -> T,
) -> Stored<T> {
    let values: Vec<T> = values.iter().map(|&value| convert(value)).collect();
    match rows {
        None => Stored::Vector(values),
        Some(_) => {
            let rows = values.chunks_exact(columns);
            Stored::Matrix(
                rows.flat_map(|row| row.chunks(BLOCK).map(|block| Aligned(padded(block)))).collect(),
            )
        }
    }
}
