//! A sublayer for one new position, in fewer stretches of shared work than its plain composition has: waking and awaiting the other
//! threads costs as much as a small product. Every number is the plain composition's, to the bit.

use super::linear::{Layer, UNIT};
use super::memory::{front, front_mut};
use super::{Float, Host, gelu};
use crate::backend::{AttentionShape, Backend, LinearShape, Rows};
use crate::error::Result;
use crate::modules::{AttentionSublayer, LayerCache, MlpSublayer, Scratch};
use crate::threads::{pieces, share};

/// [`AttentionSublayer::compose`] for one row: queries, keys and values are one stretch of work.
pub(super) fn attention_sublayer<T: Float>(
    host: &mut Host<T>,
    x: &mut Vec<T>,
    sublayer: &AttentionSublayer<Host<T>>,
    cache: &mut LayerCache<Host<T>>,
    s: &mut Scratch<Host<T>>,
    cursor: &Vec<u32>,
    shape: AttentionShape,
) -> Result<()> {
    let (arch, channels, attention) = (host.arch, shape.channels(), &sublayer.attention);
    let square = LinearShape { rows: 1, inputs: channels, outputs: channels };
    host.layernorm(&mut s.normed, x, &sublayer.norm, Rows::All(1), channels)?;
    let normed = front("q, k, v: x", &s.normed, channels);
    let layers = [&attention.q, &attention.k, &attention.v].map(|weight| Layer::new(weight, None, square));
    let y = [&mut s.q, &mut s.k, &mut s.v].map(|y| front_mut("q, k, v: y", y, channels));
    share(y, UNIT, pieces(layers.iter().map(Layer::bytes).sum()), &|first, y| {
        for (layer, y) in layers.iter().zip(y) {
            layer.outputs_from(arch, first, y, normed);
        }
    });
    host.append(&mut cache.keys, &s.k, cursor, shape)?;
    host.append(&mut cache.values, &s.v, cursor, shape)?;
    host.attention(&mut s.core, &s.q, &cache.keys, &cache.values, cursor, shape)?;
    host.linear(&mut s.out, &s.core, &attention.out, Some(&attention.out_bias), square)?;
    host.add(x, &s.out, channels)
}

/// [`MlpSublayer::compose`] for one row: the activation is part of the first product's work.
pub(super) fn mlp_sublayer<T: Float>(
    host: &mut Host<T>,
    x: &mut Vec<T>,
    sublayer: &MlpSublayer<Host<T>>,
    s: &mut Scratch<Host<T>>,
) -> Result<()> {
    let (arch, mlp) = (host.arch, &sublayer.mlp);
    let (channels, width) = (mlp.channels, mlp.width);
    let down = LinearShape { rows: 1, inputs: width, outputs: channels };
    host.layernorm(&mut s.normed, x, &sublayer.norm, Rows::All(1), channels)?;
    let normed = front("up: x", &s.normed, channels);
    let up = LinearShape { rows: 1, inputs: channels, outputs: width };
    let up = Layer::new(&mlp.up, Some(&mlp.up_bias), up);
    let y = [front_mut("up: y", &mut s.up, width), front_mut("gelu: y", &mut s.gelu, width)];
    share(y, UNIT, pieces(up.bytes()), &|first, [y, activated]| {
        up.outputs_from(arch, first, y, normed);
        gelu::gelu(arch, activated, y);
    });
    host.linear(&mut s.out, &s.gelu, &mlp.down, Some(&mlp.down_bias), down)?;
    host.add(x, &s.out, channels)
}
