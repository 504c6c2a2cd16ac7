//! A round-robin scheduler, with tasks that wait for each other and a bounded queue between them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Display;
use std::rc::Rc;

use anyhow::Result;
use greenlet::{Greenlet, getcurrent, getmain};

/// The queue of ready tasks. The main greenlet is the hub.
#[derive(Clone, Default)]
struct Scheduler {
    ready: Rc<RefCell<VecDeque<Greenlet>>>,
}

impl Scheduler {
    fn spawn<R: 'static>(&self, function: impl FnOnce() -> Result<R> + 'static) -> Task<R> {
        let shared = Rc::new(Shared {
            result: RefCell::new(None),
            waiting: RefCell::default(),
        });
        let (ready, task) = (self.ready.clone(), shared.clone());
        let greenlet = Greenlet::new(move |(): ()| {
            let result = function()?;
            task.result.replace(Some(result));
            ready.borrow_mut().extend(task.waiting.take());
            Ok(())
        });
        self.ready.borrow_mut().push_back(greenlet);
        Task { shared }
    }

    fn pause(&self) -> Result<()> {
        self.ready.borrow_mut().push_back(getcurrent());
        getmain().switch(())
    }

    fn run(&self) -> Result<()> {
        loop {
            let next = self.ready.borrow_mut().pop_front();
            match next {
                // The handle moves with the switch: a handle kept here would keep a task alive that
                // no task waits for.
                Some(task) => task.switch_owned::<()>(())?,
                None => return Ok(()),
            }
        }
    }
}

struct Task<R> {
    shared: Rc<Shared<R>>,
}

struct Shared<R> {
    result: RefCell<Option<R>>,
    waiting: RefCell<Vec<Greenlet>>,
}

impl<R> Task<R> {
    fn join(self) -> Result<R> {
        loop {
            if let Some(result) = self.shared.result.take() {
                return Ok(result);
            }
            self.shared.waiting.borrow_mut().push(getcurrent());
            getmain().switch::<()>(())?;
        }
    }
}

#[derive(Clone)]
struct Queue<T> {
    scheduler: Scheduler,
    size: usize,
    items: Rc<RefCell<VecDeque<T>>>,
    waiting: Rc<RefCell<Vec<Greenlet>>>,
}

impl<T> Queue<T> {
    fn new(scheduler: &Scheduler, size: usize) -> Queue<T> {
        Queue {
            scheduler: scheduler.clone(),
            size,
            items: Rc::default(),
            waiting: Rc::default(),
        }
    }

    fn wait(&self) -> Result<()> {
        self.waiting.borrow_mut().push(getcurrent());
        getmain().switch(())
    }

    fn wake(&self) {
        self.scheduler.ready.borrow_mut().extend(self.waiting.take());
    }

    fn put(&self, item: T) -> Result<()> {
        while self.items.borrow().len() == self.size {
            self.wait()?;
        }
        self.items.borrow_mut().push_back(item);
        self.wake();
        Ok(())
    }

    fn get(&self) -> Result<T> {
        loop {
            let item = self.items.borrow_mut().pop_front();
            if let Some(item) = item {
                self.wake();
                return Ok(item);
            }
            self.wait()?;
        }
    }
}

fn count(scheduler: &Scheduler, name: &'static str, to: usize) -> Task<String> {
    let inside = scheduler.clone();
    scheduler.spawn(move || {
        for n in 1..=to {
            println!("{name}: {n}");
            inside.pause()?;
        }
        Ok(name.repeat(to))
    })
}

fn collect<R: Display + 'static>(scheduler: &Scheduler, tasks: Vec<Task<R>>) {
    scheduler.spawn(move || {
        let results = tasks.into_iter().map(|task| Ok(task.join()?.to_string()));
        println!("all: {}", results.collect::<Result<Vec<_>>>()?.join(" "));
        Ok(())
    });
}

fn main() -> Result<()> {
    let scheduler = Scheduler::default();
    let tasks = vec![count(&scheduler, "a", 3), count(&scheduler, "b", 2)];
    collect(&scheduler, tasks);
    scheduler.run()?;

    let queue = Queue::new(&scheduler, 2);
    let full = queue.clone();
    scheduler.spawn(move || {
        for n in 0..5 {
            full.put(Some(n))?;
            println!("put {n}");
        }
        full.put(None)
    });
    let inside = scheduler.clone();
    let consumer = scheduler.spawn(move || {
        let mut total = 0;
        while let Some(item) = queue.get()? {
            println!("got {item}");
            total += item;
            inside.pause()?;
        }
        Ok(total)
    });
    collect(&scheduler, vec![consumer]);
    scheduler.run()
}
