//! probe
fn main() {
    rayon::ThreadPoolBuilder::new()
        .num_threads(std::env::var("T").ok().and_then(|t| t.parse().ok()).unwrap_or(2))
        .build_global()
        .unwrap();
    zoo_core::probe();
}
