//! `test_contextvars.py`. A context is a `Locals`, and a `ContextVar` a `greenlet_local!`.

use greenlet::{Greenlet, Locals, getcurrent, greenlet_local};

use crate::support::{NoLeaks, up};

greenlet_local! {
    static ID_VAR: u32 = 0;
}

/// Two greenlets set the variable to their number, wait, and read it again.
fn read_back(locals: impl Fn() -> Option<Locals>) -> [u32; 2] {
    let _watch = NoLeaks::watch();
    ID_VAR.set(9);
    let greenlets = [1, 2].map(|number| {
        let g = Greenlet::new(move |(): ()| {
            let inherited = ID_VAR.get();
            ID_VAR.set(number);
            up::<()>(inherited)?;
            Ok(ID_VAR.get())
        });
        if let Some(locals) = locals() {
            g.set_locals(locals);
        }
        g
    });
    let inherited: Vec<u32> = greenlets.iter().map(|g| g.switch(()).unwrap()).collect();
    let read = greenlets.each_ref().map(|g| g.switch::<u32>(()).unwrap());
    if locals().is_none() {
        assert_eq!(inherited, [0, 0]);
    }
    ID_VAR.unset();
    read
}

#[test]
fn test_context_propagated_by_context_run() {
    let _watch = NoLeaks::watch();
    ID_VAR.set(7);
    let copy = Locals::current().copy();
    let g = Greenlet::new(move |(): ()| Ok(copy.run(|| ID_VAR.get())));
    assert_eq!(g.switch::<u32>(()).unwrap(), 7);
    ID_VAR.unset();
}

#[test]
fn test_context_propagated_by_setting_attribute() {
    assert_eq!(
        read_back(|| Some(Locals::current().copy())),
        [1, 2],
        "each has a copy"
    );
}

#[test]
fn test_context_not_propagated() {
    assert_eq!(read_back(|| None), [1, 2], "each begins without any");
}

#[test]
fn test_context_shared() {
    let shared = Locals::new();
    assert_eq!(read_back(move || Some(shared.clone())), [2, 2], "both use one");
}

#[test]
fn test_context_assignment_while_running() {
    let _watch = NoLeaks::watch();
    let g = Greenlet::new(|(): ()| {
        ID_VAR.set(1);
        let other = Locals::new();
        other.set(&ID_VAR, 2);
        getcurrent().set_locals(other);
        let second = ID_VAR.get();
        getcurrent().set_locals(None);
        Ok((second, ID_VAR.get()))
    });
    assert_eq!(g.switch::<(u32, u32)>(()).unwrap(), (2, 0));
}
