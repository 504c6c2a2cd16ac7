//! Allows this second copy of the core in the program of the benchmarks.

fn main() {
    println!("cargo:rustc-check-cfg=cfg(greenlet_core_copy_for_benchmarks)");
    println!("cargo:rustc-cfg=greenlet_core_copy_for_benchmarks");
    println!("cargo:rerun-if-changed=build.rs");
}
