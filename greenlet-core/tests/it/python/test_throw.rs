//! `test_throw.py`.

use anyhow::{Result, bail};
use greenlet::{Greenlet, GreenletExit, getmain};

use super::SomeError;
use crate::support::{NoLeaks, up};

fn catches(text: Option<&'static str>) -> Greenlet {
    Greenlet::new(move |(): ()| -> Result<&str> {
        let Err(error) = up::<()>("ok") else {
            bail!("no error")
        };
        match text {
            Some(text) => assert_eq!(error.to_string(), text),
            None => assert!(error.is::<SomeError>()),
        }
        up::<()>("ok")?;
        Ok("end")
    })
}

#[test]
fn test_class() {
    let _watch = NoLeaks::watch();
    let g = catches(None);
    assert_eq!(g.switch::<&str>(()).unwrap(), "ok");
    assert_eq!(g.throw::<&str>(SomeError).unwrap(), "ok");
}

#[test]
fn test_val() {
    let _watch = NoLeaks::watch();
    let g = catches(Some("ciao"));
    assert_eq!(g.switch::<&str>(()).unwrap(), "ok");
    assert_eq!(g.throw::<&str>(anyhow::anyhow!("ciao")).unwrap(), "ok");
}

#[test]
fn test_kill() {
    let _watch = NoLeaks::watch();
    let g = Greenlet::new(|(): ()| -> Result<()> {
        up::<()>("ok")?;
        up::<()>("fail")
    });
    assert_eq!(g.switch::<&str>(()).unwrap(), "ok");
    assert!(g.kill().unwrap().is_exit());
    assert!(g.is_dead());
    // The dead greenlet returns it at once.
    let _exit: GreenletExit = g.throw(GreenletExit::new()).unwrap();
}

#[test]
fn test_throw_goes_to_original_parent() {
    let _watch = NoLeaks::watch();
    let f1 = || {
        Greenlet::new(|(): ()| match getmain().switch::<()>("f1 ready to catch") {
            Err(error) if error.is::<SomeError>() => Ok("caught"),
            _ => Ok("normal exit"),
        })
    };
    let f2 = |parent: &Greenlet| {
        Greenlet::builder()
            .parent(parent)
            .build(|(): ()| getmain().switch::<&str>("from f2"))
    };

    // Neither has started.
    let g1 = f1();
    let g2 = f2(&g1);
    assert!(g2.throw::<()>(SomeError).unwrap_err().is::<SomeError>());
    assert!(g2.is_dead() && g1.is_dead());

    // The parent waits, and catches it.
    let g1 = f1();
    let g2 = f2(&g1);
    assert_eq!(g1.switch::<&str>(()).unwrap(), "f1 ready to catch");
    assert_eq!(g2.throw::<&str>(SomeError).unwrap(), "caught");
    assert!(g2.is_dead() && g1.is_dead());

    // Both wait.
    let g1 = f1();
    let g2 = f2(&g1);
    assert_eq!(g1.switch::<&str>(()).unwrap(), "f1 ready to catch");
    assert_eq!(g2.switch::<&str>(()).unwrap(), "from f2");
    assert_eq!(g2.throw::<&str>(SomeError).unwrap(), "caught");
    assert!(g2.is_dead() && g1.is_dead());
}
