//! A scheduler that asks the choices which greenlet runs next.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Result, ensure};
use greenlet::testing::explore::Choices;
use greenlet::{Greenlet, getcurrent, getmain};

pub(crate) struct Scheduler {
    pub(crate) choices: Choices,
    ready: RefCell<Vec<Greenlet>>,
    all: RefCell<Vec<Greenlet>>,
}

impl Scheduler {
    pub(crate) fn new(choices: &Choices) -> Rc<Scheduler> {
        Rc::new(Scheduler {
            choices: choices.clone(),
            ready: RefCell::default(),
            all: RefCell::default(),
        })
    }

    pub(crate) fn spawn(&self, name: &str, task: impl FnOnce() -> Result<()> + 'static) {
        let builder = Greenlet::builder().name(name).parent(&getmain());
        let task = builder.build(move |(): ()| task());
        self.all.borrow_mut().push(task.clone());
        self.ready.borrow_mut().push(task);
    }

    /// Lets other tasks run, if the choices say so. The first choice is to go on.
    #[track_caller]
    pub(crate) fn pause(&self) -> Result<()> {
        self.ready.borrow_mut().insert(0, getcurrent());
        self.park()
    }

    /// Suspends the running task until another one wakes it.
    #[track_caller]
    pub(crate) fn park(&self) -> Result<()> {
        getmain().switch(())
    }

    pub(crate) fn wake(&self, task: Greenlet) {
        self.ready.borrow_mut().push(task);
    }

    /// Runs all tasks to their ends, and returns an error if some wait for ever.
    pub(crate) fn run(&self) -> Result<()> {
        let outcome = self.run_ready();
        let all = self.all.take();
        let waiting: Vec<&str> = all
            .iter()
            .filter(|task| !task.is_dead())
            .filter_map(|task| task.name())
            .collect();
        let waiting = waiting.join(", ");
        all.iter().for_each(Greenlet::end);
        outcome?;
        ensure!(waiting.is_empty(), "deadlock: {waiting}");
        Ok(())
    }

    fn run_ready(&self) -> Result<()> {
        loop {
            let next = {
                let mut ready = self.ready.borrow_mut();
                if ready.is_empty() {
                    return Ok(());
                }
                let index = self.choices.pick(&*ready);
                ready.remove(index)
            };
            if !next.is_dead() {
                next.switch_owned::<()>(())?;
            }
        }
    }
}
