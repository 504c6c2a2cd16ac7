"""A subclass with a `run` method and attributes of its own, which others look at while it is suspended."""

from greenlet import getcurrent, greenlet


class Account(greenlet):
    def __init__(self, owner, balance=0):
        super().__init__()
        self.owner = owner
        self.balance = balance
        self.log = []

    def run(self, command):
        while command is not None:
            what, amount = command
            command = self.parent.switch(getattr(self, what)(amount))
        return f"{self.owner}'s account is closed with {self.balance}"

    def deposit(self, amount):
        self.balance += amount
        self.log.append(f"+{amount}")
        return self.balance

    def withdraw(self, amount):
        if amount > self.balance:
            self.log.append(f"-{amount} refused")
            return None
        self.balance -= amount
        self.log.append(f"-{amount}")
        return self.balance


ann, bob = Account("ann", 10), Account("bob")
print(ann.switch(("deposit", 5)), bob.switch(("deposit", 7)))
print(ann.switch(("withdraw", 12)), bob.switch(("withdraw", 12)))
for account in (ann, bob):
    print(account.owner, account.balance, ", ".join(account.log))
print(isinstance(ann, greenlet), ann.switch(None), ann.dead)
print(bob.switch(None))
