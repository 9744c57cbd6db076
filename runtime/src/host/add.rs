//! The residual addition.

use super::Float;

/// y += x.
pub(super) fn add<T: Float>(y: &mut [T], x: &[T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += x;
    }
}
