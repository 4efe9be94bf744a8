-- A music shop like Chinook, written anew: every name in quotes and mixed case, a web of foreign keys, indexes on each.
create schema "Music";
create table "Music"."Artist" ("ArtistId" int constraint "PK_Artist" primary key, "Name" varchar(120));
create table "Music"."Album" ("AlbumId" int constraint "PK_Album" primary key, "Title" varchar(160) not null, "ArtistId" int not null);
create table "Music"."Employee" ("EmployeeId" int constraint "PK_Employee" primary key, "LastName" varchar(20) not null,
  "FirstName" varchar(20) not null, "ReportsTo" int, "BirthDate" timestamp, "HireDate" timestamp, "Email" varchar(60));
create table "Music"."Customer" ("CustomerId" int constraint "PK_Customer" primary key, "FirstName" varchar(40) not null,
  "LastName" varchar(20) not null, "Country" varchar(40), "Email" varchar(60) not null, "SupportRepId" int);
create table "Music"."Genre" ("GenreId" int constraint "PK_Genre" primary key, "Name" varchar(120));
create table "Music"."MediaType" ("MediaTypeId" int constraint "PK_MediaType" primary key, "Name" varchar(120));
create table "Music"."Invoice" ("InvoiceId" int generated always as identity constraint "PK_Invoice" primary key, "CustomerId" int not null,
  "InvoiceDate" timestamp not null, "BillingCountry" varchar(40), "Total" numeric(10,2) not null);
create table "Music"."InvoiceLine" ("InvoiceLineId" serial constraint "PK_InvoiceLine" primary key, "InvoiceId" int not null,
  "TrackId" int not null, "UnitPrice" numeric(10,2) not null, "Quantity" int not null);
create table "Music"."Playlist" ("PlaylistId" int constraint "PK_Playlist" primary key, "Name" varchar(120));
create table "Music"."PlaylistTrack" ("PlaylistId" int not null, "TrackId" int not null,
  constraint "PK_PlaylistTrack" primary key ("PlaylistId", "TrackId"));
create table "Music"."Track" ("TrackId" int constraint "PK_Track" primary key, "Name" varchar(200) not null, "AlbumId" int,
  "MediaTypeId" int not null, "GenreId" int, "Composer" varchar(220), "Milliseconds" int not null, "Bytes" int,
  "UnitPrice" numeric(10,2) not null);
do $$ declare key text[]; begin
  foreach key slice 1 in array array[['Album', 'Artist', 'ArtistId', 'ArtistId'], ['Customer', 'Employee', 'SupportRepId', 'EmployeeId'],
      ['Employee', 'Employee', 'ReportsTo', 'EmployeeId'], ['Invoice', 'Customer', 'CustomerId', 'CustomerId'],
      ['InvoiceLine', 'Invoice', 'InvoiceId', 'InvoiceId'], ['InvoiceLine', 'Track', 'TrackId', 'TrackId'],
      ['PlaylistTrack', 'Playlist', 'PlaylistId', 'PlaylistId'], ['PlaylistTrack', 'Track', 'TrackId', 'TrackId'],
      ['Track', 'Album', 'AlbumId', 'AlbumId'], ['Track', 'Genre', 'GenreId', 'GenreId'],
      ['Track', 'MediaType', 'MediaTypeId', 'MediaTypeId']] loop
    execute format('alter table "Music".%I add constraint %I foreign key (%I) references "Music".%I (%I)',
      key[1], 'FK_' || key[1] || key[3], key[3], key[2], key[4]);
    execute format('create index %I on "Music".%I (%I)', 'IFK_' || key[1] || key[3], key[1], key[3]);
  end loop;
end $$;
comment on table "Music"."Track" is 'What is on an "Album"';
create view "Music"."TopTracks" as
  select "Track"."TrackId", "Track"."Name", "Artist"."Name" as "Artist", sum("InvoiceLine"."Quantity") as "Sold"
  from "Music"."Track" join "Music"."Album" using ("AlbumId") join "Music"."Artist" using ("ArtistId")
    join "Music"."InvoiceLine" using ("TrackId") group by "Track"."TrackId", "Artist"."Name";

insert into "Music"."Artist" select n, 'Mötley ' || n from generate_series(1, 100) n;
insert into "Music"."Album" select n, 'Album ' || n, 1 + n % 100 from generate_series(1, 150) n;
insert into "Music"."Employee" select n, 'L' || n, 'F' || n, nullif(n / 2, 0), '1962-02-18', '2002-08-14', null from generate_series(1, 8) n;
insert into "Music"."Customer" select n, 'F' || n, 'L' || n, 'Brazil', n || '@x.org', 1 + n % 8 from generate_series(1, 59) n;
insert into "Music"."Genre" select n, 'Genre ' || n from generate_series(1, 25) n;
insert into "Music"."MediaType" select n, 'Media ' || n from generate_series(1, 5) n;
insert into "Music"."Track" select n, E'Track\t' || n, 1 + n % 150, 1 + n % 5, 1 + n % 25, nullif(n % 3, 0) || ' & Co', n * 100, null, 0.99
  from generate_series(1, 800) n;
insert into "Music"."Playlist" select n, 'List ' || n from generate_series(1, 18) n;
insert into "Music"."PlaylistTrack" select p, t from generate_series(1, 18) p, generate_series(1, 800) t where (p * t) % 11 = 3;
insert into "Music"."Invoice" ("CustomerId", "InvoiceDate", "BillingCountry", "Total")
  select 1 + n % 59, timestamp '2009-01-01' + n * interval '1 day', 'Brazil', n * 0.99 from generate_series(1, 400) n;
insert into "Music"."InvoiceLine" ("InvoiceId", "TrackId", "UnitPrice", "Quantity") select 1 + n % 400, 1 + n % 700, 0.99, 1 + n % 3 from generate_series(1, 1500) n;
