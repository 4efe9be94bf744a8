-- What PostgreSQL 18 and later know.
create table hard.from_18 (
  id int4range constraint id_is_set not null,
  valid_at daterange not null,
  n integer,
  doubled integer generated always as (n * 2) virtual,
  constraint over_time primary key (id, valid_at without overlaps),
  constraint not_enforced check (n > 0) not enforced
);
create table hard.period_18 (id int4range, valid_at daterange, primary key (id, valid_at without overlaps),
  constraint by_period foreign key (id, period valid_at) references hard.from_18 (id, period valid_at));
alter table hard.from_18 add constraint late_null not null n not valid;
