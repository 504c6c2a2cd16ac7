//! The compiler's message where a spawned function must be `Send`: it contains the advice.

#[path = "../greenlet-core/tests/project/mod.rs"]
mod project;

use project::{Project, errors};

#[test]
fn the_first_error_says_what_to_use() {
    let parts = format!(
        "[dependencies]\ngreenlet = {{ path = \"{}\" }}\n",
        env!("CARGO_MANIFEST_DIR")
    );
    for spawned in [
        "greenlet::greenlet_spawn(|| 1)",
        "greenlet::SpawnBuilder::new().spawn(|| 1).cancel()",
        "greenlet::stream_from(|items| items.yield_(1))",
        "async { greenlet::greenlet_spawn(|| 1).await }",
    ] {
        let main = format!("fn is_send<T: Send>(_: T) {{}}\nfn main() {{ is_send({spawned}) }}\n");
        let text = errors(&Project::new("send-advice", &parts, &main).run(&[]));
        // There is an error for each type in it that is not `Send`; the first one counts.
        let first = text.split("\n\nerror").next().unwrap_or_default();
        assert!(
            first.contains("cannot be sent between threads safely"),
            "{spawned}: {text}"
        );
        assert!(
            first.contains("`*const UseLocalSetOrPinnedPool`"),
            "{spawned}: {text}"
        );
    }
}
