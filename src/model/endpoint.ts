// How to reach the two databases of a task. What may be seen (and is stored in the clear) is kept apart from the secrets.

export const sslModes = ['disable', 'prefer', 'require', 'verify-ca', 'verify-full'] as const;
export type SslMode = (typeof sslModes)[number];

export type Role = 'source' | 'target';

/** Where a password comes from. `stored`: encrypted in our SQLite; it is never part of this document. */
export type PasswordSource =
  | { readonly from: 'stored' | 'none' }
  | { readonly from: 'env'; readonly name: string }
  | { readonly from: 'file'; readonly path: string };

/** How to reach one database; everything but the secrets. */
export interface Endpoint {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly dbname: string;
  readonly sslmode: SslMode;
  /** PEM text or a file's path. */
  readonly sslrootcert?: string;
  readonly sslcert?: string;
  /** A file's path; PEM text of a key is a secret and lies with the password. */
  readonly sslkeyPath?: string;
  readonly password: PasswordSource;
}

/** The secret half of an endpoint, as the store hands it to `postgres/connect` and to nobody else. */
export interface EndpointSecrets {
  readonly password?: string;
  readonly sslkey?: string;
}
