//! Kernels on slices: every instruction set against the reference.

#[macro_use]
#[path = "../kernel_support/mod.rs"]
mod kernel_support;

mod codes;
mod conv;
mod dynamic;
mod float;
mod gemm;
mod lowbit;
mod ranges;
