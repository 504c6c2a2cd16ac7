//! A struct with a greenlet and attributes, which other code reads while the greenlet is suspended.

use std::cell::RefCell;
use std::rc::Rc;

use greenlet::{Greenlet, getparent};

/// The attributes, shared by the function and its owner.
struct State {
    owner: &'static str,
    balance: i32,
    log: Vec<String>,
}

enum Command {
    Deposit(i32),
    Withdraw(i32),
}

struct Account {
    greenlet: Greenlet,
    state: Rc<RefCell<State>>,
}

impl Account {
    fn new(owner: &'static str, balance: i32) -> Account {
        let log = Vec::new();
        let state = Rc::new(RefCell::new(State { owner, balance, log }));
        let shared = state.clone();
        let greenlet = Greenlet::builder()
            .name(owner)
            .build(move |first| run(&shared, first));
        Account { greenlet, state }
    }

    fn tell(&self, command: Command) -> anyhow::Result<String> {
        let balance: Option<i32> = self.greenlet.switch(Some(command))?;
        Ok(balance.map_or("None".to_owned(), |balance| balance.to_string()))
    }

    fn close(&self) -> anyhow::Result<String> {
        self.greenlet.switch(None::<Command>)
    }
}

/// The method `run`.
fn run(state: &RefCell<State>, mut command: Option<Command>) -> anyhow::Result<String> {
    let parent = getparent().expect("it has one");
    while let Some(what) = command {
        let balance = match what {
            Command::Deposit(amount) => state.borrow_mut().deposit(amount),
            Command::Withdraw(amount) => state.borrow_mut().withdraw(amount),
        };
        command = parent.switch(balance)?; // no borrow is held here
    }
    let State { owner, balance, .. } = &*state.borrow();
    Ok(format!("{owner}'s account is closed with {balance}"))
}

impl State {
    fn deposit(&mut self, amount: i32) -> Option<i32> {
        self.balance += amount;
        self.log.push(format!("+{amount}"));
        Some(self.balance)
    }

    fn withdraw(&mut self, amount: i32) -> Option<i32> {
        if amount > self.balance {
            self.log.push(format!("-{amount} refused"));
            return None;
        }
        self.balance -= amount;
        self.log.push(format!("-{amount}"));
        Some(self.balance)
    }
}

fn main() -> anyhow::Result<()> {
    let (ann, bob) = (Account::new("ann", 10), Account::new("bob", 0));
    println!(
        "{} {}",
        ann.tell(Command::Deposit(5))?,
        bob.tell(Command::Deposit(7))?
    );
    println!(
        "{} {}",
        ann.tell(Command::Withdraw(12))?,
        bob.tell(Command::Withdraw(12))?
    );
    for account in [&ann, &bob] {
        let State { owner, balance, log } = &*account.state.borrow();
        println!("{owner} {balance} {}", log.join(", "));
    }
    let closed = ann.close()?;
    let title = |value: bool| if value { "True" } else { "False" };
    println!("True {closed} {}", title(ann.greenlet.is_dead()));
    println!("{}", bob.close()?);
    Ok(())
}
