create table accounts (id serial primary key, name text not null unique, cents bigint not null);
