//! The activation.

use super::Float;

/// y = x · Φ(x).
pub(super) fn gelu<T: Float>(arch: pulp::Arch, y: &mut [T], x: &[T]) {
    arch.dispatch(|| {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x.gelu();
        }
    });
}
