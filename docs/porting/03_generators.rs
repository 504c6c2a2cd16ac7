//! Generators that yield from any depth, and are sent values: the library has them.

use anyhow::{Result, bail};
use greenlet::{Generator, Yielder};

struct Tree {
    left: Option<Box<Tree>>,
    value: i32,
    right: Option<Box<Tree>>,
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "so that trees can be written down nested"
)]
fn tree(left: Option<Box<Tree>>, value: i32, right: Option<Box<Tree>>) -> Option<Box<Tree>> {
    Some(Box::new(Tree { left, value, right }))
}

fn example() -> Option<Box<Tree>> {
    let left = tree(tree(None, 1, None), 2, tree(None, 3, None));
    tree(left, 4, tree(None, 5, tree(None, 6, None)))
}

fn walk(tree: Option<&Tree>, out: &Yielder<i32>) -> Result<()> {
    if let Some(Tree { left, value, right }) = tree {
        walk(left.as_deref(), out)?;
        out.yield_(*value)?;
        walk(right.as_deref(), out)?;
    }
    Ok(())
}

fn values() -> Generator<i32> {
    Generator::new(|out| walk(example().as_deref(), &out))
}

fn line(generator: Generator<i32>) -> Result<String> {
    let items = generator
        .map(|n| Ok(n?.to_string()))
        .collect::<Result<Vec<_>>>()?;
    Ok(items.join(" "))
}

fn main() -> Result<()> {
    println!("{}", line(values())?);

    let squares = Generator::new(|out| {
        for n in values() {
            let n = n?;
            out.yield_(n * n)?;
        }
        Ok(())
    });
    println!("{}", line(squares)?);

    // The function receives the first sent value as its argument, so no extra step is needed to
    // start it.
    let mut running = Generator::<f64, f64>::with_input(|out, first| {
        let (mut total, mut count) = (first, 1.0);
        loop {
            total += out.yield_(total / count)?;
            count += 1.0;
        }
    });
    for n in [10.0, 20.0, 60.0] {
        println!("{:.1}", running.send(n).expect("it never ends")?);
    }

    let mut failing = Generator::<&str>::new(|out| {
        out.yield_("one")?;
        bail!("nothing left")
    });
    println!("{}", failing.next().expect("an item")?);
    if let Some(Err(error)) = failing.next() {
        println!("error: {error}");
    }
    println!("items left: {}", failing.count());
    Ok(())
}
