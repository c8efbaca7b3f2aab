//! Plain operators, family by family, against plain loops and the standard's definitions.

#[path = "../nodes/mod.rs"]
mod nodes;
#[path = "../support/mod.rs"]
mod support;

mod binary;
mod cast;
mod conv;
mod movement;
mod norm;
mod pool;
mod quantized;
mod reduce;
mod resize;
mod shape;
mod softmax;
mod unary;
